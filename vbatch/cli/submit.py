"""``submit``: check a file, store it, print the id; with --wait, follow it to its end."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from vbatch import batches
from vbatch.batches import Checked, InputFile, Store, SubmitOptions, Submitted, documents
from vbatch.cli import screens
from vbatch.cli.batch import batch_result, status_result
from vbatch.cli.output import Mode, Output, Result
from vbatch.cli.startup import open_store, settings
from vbatch.cli.watch import clean, follow
from vbatch.errors import ExitCode, InputUnreadable, UsageError
from vbatch.text import ago, count, one_line

BIG = 20 << 20  # bytes; a smaller file is read in a moment


def submit(file: str, options: SubmitOptions, *, wait: bool, dry_run: bool, json: bool, quiet: bool) -> int:
    """Submit a file or stdin and return the exit code."""
    if wait and dry_run:
        raise UsageError("--dry-run stores nothing that --wait could wait for")
    if options.reuse is not None and dry_run:
        raise UsageError("--dry-run stores nothing that --reuse could answer")
    output = Output.of(json=json, quiet=quiet)
    source = _input(file)
    if dry_run:
        settings(output)
        with _bar(output, source) as on_read:
            checked = batches.check(source, options, on_read=on_read)
        output.show(_checked_result(checked))
        return ExitCode.DONE
    with open_store(output) as store:
        with _bar(output, source) as on_read:
            done = batches.submit(store, source, options, on_read=on_read)
        with batches.name_batch_in_errors(done.batch.id):
            return _after(output, store, options, done, wait=wait)


def _after(output: Output, store: Store, options: SubmitOptions, done: Submitted, *, wait: bool) -> ExitCode:
    """Show the new batch and, if it is waited for, follow it to its end."""
    as_document = output.mode is Mode.JSON
    if not (wait and as_document):
        output.show(batch_result(done.batch, done.batch.id))
    if output.mode is Mode.HUMAN:
        _explain(output, store, options, done)
    if not wait:
        return ExitCode.DONE
    ended = follow(output, store, done.batch.id)
    if as_document:
        output.show(status_result(ended))
    elif output.mode is Mode.HUMAN:
        output.stderr.print(screens.ending(ended))
    return ExitCode.DONE if clean(ended.batch) else ExitCode.INCOMPLETE


@contextmanager
def _bar(output: Output, source: InputFile) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how much of a big file is read."""
    big = source.size is not None and source.size >= BIG
    if not big or output.mode is not Mode.HUMAN or not output.stderr.is_terminal:
        yield lambda _size: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.stderr, transient=True) as progress:
        task = progress.add_task(one_line(f"reading {source.name}", limit=60), total=source.size)
        yield lambda read: progress.update(task, completed=read)


def _input(file: str) -> InputFile:
    if file != "-":
        return InputFile.at(Path(file))
    if sys.stdin is None:
        raise InputUnreadable("standard input is closed", hint="vbatch submit - < prompts.jsonl")
    if sys.stdin.isatty():
        sys.stderr.write("reading requests from the terminal, one per line; Ctrl-D ends them\n")
    return InputFile.of(sys.stdin.buffer)


def _explain(output: Output, store: Store, options: SubmitOptions, done: Submitted) -> None:
    """Show a person what happens next, on stderr."""
    batch = done.batch
    output.note(screens.accepted(batch))
    if options.reuse is not None:
        output.note(_reused(done))
    elif done.repeats:
        first = done.repeats[0]
        output.warn(
            f"the same file was submitted {ago(first.created_at)} as {first.id} ({first.status.replace('_', ' ')})"
        )
    if not batch.status.final and (hint := screens.missing_worker(batches.at_work(store, batch))) is not None:
        output.note(hint)


def _reused(done: Submitted) -> str:
    if done.reused_from is None:
        return "no earlier batch was made of this file; every request runs"
    taken = f"{count(done.batch.reused, 'answer')} taken from {done.reused_from.id}"
    return f"{taken}; {count(done.batch.counts.total - done.batch.reused, 'request')} to run"


def _checked_result(checked: Checked) -> Result:
    return Result(
        document=lambda: documents.checked_document(checked),
        screen=lambda: f"{count(checked.requests, 'request')}, all valid; nothing was stored",
    )
