"""``list``, ``status``, ``results``, ``cancel``, ``retry``, ``delete``: look at batches, or change one."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING

from vbatch import batches, config, pausing
from vbatch.batches import EVERY, documents
from vbatch.cli import at_work, screens
from vbatch.cli.arguments import output_file
from vbatch.cli.listing import BatchTable
from vbatch.cli.output import Mode, Output, Result
from vbatch.cli.startup import open_store, settings
from vbatch.errors import UsageError
from vbatch.text import count, one_line

if TYPE_CHECKING:
    from rich.console import RenderableType

    from vbatch.batches import Batch, BatchList, RetryOptions, Selection, Status, Store

NEWEST = 20  # batches that ``list`` shows without --all


def list_batches(*, every: bool, status: str | None, name: str | None, json: bool, quiet: bool) -> None:
    """Show the newest batches, or all; of a status, of a name."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output, reads=True) as store:
        limit = EVERY if every else NEWEST
        found = batches.list_batches(store, limit=limit, status=status, name=name)
    paused = pausing.shown(config.load())
    output.show(
        Result(
            ids=[batch.id for batch in found.batches],
            document=lambda: documents.list_document(found) | {"paused": pausing.document(paused)},
            screen=lambda: _table(found) if found.batches else None,
        )
    )
    if paused is not None and output.mode is Mode.HUMAN:
        output.note(at_work.paused(paused))
    if not found.batches:
        chosen = status is not None or name is not None
        output.note(
            "no batch matches" if chosen else "no batch yet; submit one with: vbatch submit prompts.jsonl"
        )
    if output.mode is Mode.HUMAN:
        _explain(output, found)
    if found.has_more and output.mode is Mode.HUMAN:
        output.note(f"these are the newest {NEWEST}; all of them: vbatch list --all")


def _explain(output: Output, found: BatchList) -> None:
    """Show which hosts work, and which batches wait for another one to write their files."""
    if (line := at_work.by_host(found.workers)) is not None:
        output.note(line)
    for batch in found.batches:
        if (host := found.files_wait_for.get(batch.pk)) is not None:
            output.note(f"{batch.id}: {batches.explained(batch, host)}")


def _table(found: BatchList) -> BatchTable:
    entirely = frozenset(pk for pk, blocks in found.blocked.items() if blocks.entirely)
    return BatchTable(found.batches, blocked=entirely)


def show_status(reference: str, *, json: bool, quiet: bool) -> None:
    """Show how one batch is doing."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output, reads=True) as store:
        status = batches.status(store, reference)
    output.show(status_result(status))


def results(reference: str, selection: Selection, *, output_path: str | None, json: bool) -> None:
    """Write the finished lines in file order; with ``json`` the batch object, which names its files."""
    output = Output.of(json=json)
    if json and output_path is not None:
        raise UsageError("--json prints the batch object and writes no file", hint="leave out --json or -o")
    chosen = output_file(output_path, "-o", hint=f"vbatch results {reference} prints the lines")
    with open_store(output, reads=True) as store:
        if json:
            output.document(documents.batch_document(batches.find(store, reference)))
        elif chosen is not None:
            saved = batches.save_results(store, reference, chosen, selection)
            output.note(f"{count(saved.lines, 'line')} written to {saved.path}")
        else:
            for line in batches.results(store, reference, selection):
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def cancel_batch(reference: str, *, json: bool, quiet: bool) -> None:
    """Cancel one batch."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        batch = batches.cancel(store, _confirmed(output, store, reference, "cancel"))
        batches.notify_at_once(store, settings(output), batch)
        host = batches.waits_for(store, batch)
    done, total = batch.counts.completed + batch.counts.failed, batch.counts.total
    kept = f"{done:,} of {total:,} requests were finished and stay"
    output.show(batch_result(batch, f"{batch.id} is {batch.status}: {kept}"))
    if host is not None:
        output.note(batches.explained(batch, host))
    elif not batch.status.final:
        output.note(f"another process is writing the files, or will; to see the end: vbatch watch {batch.id}")


def _confirmed(output: Output, store: Store, reference: str, what: str) -> str:
    """Return the id to change; ask on a terminal if the batch was not named by its id, or a part of it.

    What was asked about is what changes: ``last`` may be another batch by the time of the answer.
    """
    batch = batches.find(store, reference)
    if reference in batch.id or output.mode is not Mode.HUMAN:
        return batch.id
    if sys.stdin is not None and sys.stdin.isatty() and output.stderr.is_terminal:
        name = f", {one_line(batch.name, limit=60)}" if batch.name else ""
        question = f"{what} {batch.id}{name} ({count(batch.counts.total, 'request')})? [y/N] "
        output.stderr.print(question, end="", markup=False, highlight=False)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            raise KeyboardInterrupt
    return batch.id


def retry_batch(reference: str, options: RetryOptions, *, json: bool, quiet: bool) -> None:
    """Make a new batch of the failed requests of one, and of those whose model cannot be loaded."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        made = batches.retry(store, reference, options)
    with batches.name_batch_in_errors(made.id):
        output.show(batch_result(made, made.id))
        if output.mode is Mode.HUMAN:
            output.note(screens.accepted(made))
            output.note(f"when it has ended, all answers in one file: {screens.merge_command(made)}")


def delete_batch(reference: str, *, force: bool, json: bool, quiet: bool) -> None:
    """Remove one batch from the store."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        batch = batches.delete(store, _confirmed(output, store, reference, "delete"), force=force)
    output.show(
        Result(
            ids=[batch.id],
            document=lambda: documents.deleted_document(batch),
            screen=lambda: f"{batch.id} is deleted; its files stay",
        )
    )


def delete_old(before: timedelta, *, json: bool, quiet: bool) -> None:
    """Remove all batches that ended longer ago than this."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        gone = batches.delete_ended(store, before=before)
    deleted = [documents.deleted_document(batch) for batch in gone]
    output.show(
        Result(
            ids=[batch.id for batch in gone],
            document=lambda: {"object": "list", "data": deleted},
            screen=lambda: f"{count(len(gone), 'batch')} deleted; their files stay",
        )
    )


def batch_result(batch: Batch, screen: RenderableType) -> Result:
    """Return what a command shows that made or changed a batch; of a new one its id alone, for scripts."""
    return Result(ids=[batch.id], document=lambda: documents.batch_document(batch), screen=lambda: screen)


def status_result(status: Status) -> Result:
    """Return one batch in full."""
    return Result(
        ids=[status.batch.id],
        document=lambda: documents.status_document(status),
        screen=lambda: screens.status(status),
    )
