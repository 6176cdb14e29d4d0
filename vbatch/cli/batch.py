"""``list``, ``status``, ``results``, ``cancel``, ``retry``, ``delete``: look at batches, or change one."""

from __future__ import annotations

import sys

from rich.console import RenderableType

from vbatch import batches
from vbatch.batches import Batch, Status, documents
from vbatch.cli import screens
from vbatch.cli.arguments import output_file
from vbatch.cli.listing import BatchTable
from vbatch.cli.output import Mode, Output, Result
from vbatch.cli.startup import open_store
from vbatch.errors import UsageError
from vbatch.text import count

NEWEST = 20  # batches that ``list`` shows without --all


def list_batches(*, every: bool, json: bool, quiet: bool) -> None:
    """Show the newest batches, or all."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        found = batches.list_batches(store) if every else batches.list_batches(store, limit=NEWEST)
    output.show(
        Result(
            ids=[batch.id for batch in found.batches],
            document=lambda: documents.list_document(found),
            screen=lambda: BatchTable(found.batches) if found.batches else None,
        )
    )
    if not found.batches:
        output.note("no batch yet; submit one with: vbatch submit prompts.jsonl")
    elif found.has_more and output.mode is Mode.HUMAN:
        output.note(f"these are the newest {NEWEST}; all of them: vbatch list --all")


def show_status(reference: str, *, json: bool, quiet: bool) -> None:
    """Show how one batch is doing."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        status = batches.status(store, reference)
    output.show(status_result(status))


def results(reference: str, *, errors: bool, output_path: str | None, json: bool) -> None:
    """Write the finished lines in file order; with ``json`` the batch object, which names its files."""
    output = Output.of(json=json)
    if json and output_path is not None:
        raise UsageError("--json prints the batch object and writes no file", hint="leave out --json or -o")
    chosen = output_file(output_path, "-o", hint=f"vbatch results {reference} prints the lines")
    with open_store(output) as store:
        if json:
            output.document(documents.batch_document(batches.find(store, reference)))
        elif chosen is not None:
            saved = batches.save_results(store, reference, chosen, errors=errors)
            output.note(f"{count(saved.lines, 'line')} written to {saved.path}")
        else:
            for line in batches.results(store, reference, errors=errors):
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()


def cancel_batch(reference: str, *, json: bool, quiet: bool) -> None:
    """Cancel one batch."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        batch = batches.cancel(store, reference)
    done, total = batch.counts.completed + batch.counts.failed, batch.counts.total
    kept = f"{done:,} of {total:,} requests were finished and stay"
    output.show(batch_result(batch, f"{batch.id} is {batch.status}: {kept}"))


def retry_batch(reference: str, *, output_path: str | None, json: bool, quiet: bool) -> None:
    """Make a new batch of the failed requests of one."""
    output = Output.of(json=json, quiet=quiet)
    chosen = output_file(output_path, "-o")
    with open_store(output) as store:
        made = batches.retry(store, reference, output=chosen)
    with batches.name_batch_in_errors(made.id):
        output.show(batch_result(made, made.id))
        if output.mode is Mode.HUMAN:
            output.note(screens.accepted(made))


def delete_batch(reference: str, *, force: bool, json: bool, quiet: bool) -> None:
    """Remove one batch from the store."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        batch = batches.delete(store, reference, force=force)
    output.show(
        Result(
            ids=[batch.id],
            document=lambda: documents.deleted_document(batch),
            screen=lambda: f"{batch.id} is deleted; its files stay",
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
