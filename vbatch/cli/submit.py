"""``submit``: check a file, store it, print the id; with --wait, follow it to its end."""

from __future__ import annotations

import stat
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO

from rich.console import RenderableType
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from vbatch import batches
from vbatch.batches import Order, Submitted, documents
from vbatch.cli import screens, workers
from vbatch.cli.batch import IdAlone, StatusView
from vbatch.cli.output import Mode, Output
from vbatch.cli.startup import open_store
from vbatch.cli.watch import clean, follow
from vbatch.cli.words import ago, count
from vbatch.durations import parse_duration
from vbatch.errors import ExitCode, InputUnreadable, UsageError
from vbatch.store import Store
from vbatch.store.records import Batch
from vbatch.text import one_line

BIG = 20 << 20  # bytes; a smaller file is read in a moment


def submit(file: str, order: Order, *, wait: bool, dry_run: bool, json: bool, quiet: bool) -> int:
    """Submit a file or stdin and return the exit code."""
    if wait and dry_run:
        raise UsageError("--dry-run stores nothing that --wait could wait for")
    if order.reuse is not None and dry_run:
        raise UsageError("--dry-run stores nothing that --reuse could answer")
    output = Output.of(json=json, quiet=quiet)
    with open_store(output, prepare=not dry_run) as store:
        with _bar(output, file) as on_read:
            done = batches.submit(store, _source(file), order, dry_run=dry_run, on_read=on_read)
        if done.batch is None:
            output.show(_Checked(done))
            return ExitCode.DONE
        with batches.told(done.batch.id):
            return _after(output, store, order, done, done.batch, wait=wait)


def _after(
    output: Output, store: Store, order: Order, done: Submitted, batch: Batch, *, wait: bool
) -> ExitCode:
    """Tell of the new batch and, if it is waited for, follow it to its end."""
    as_document = output.mode is Mode.JSON
    if not (wait and as_document):
        output.show(IdAlone(batch))
    if output.mode is Mode.HUMAN:
        _explain(output, store, order, done)
    if not wait:
        return ExitCode.DONE
    ended = follow(output, store, batch.id)
    if as_document:
        output.show(StatusView(ended, None))
    elif output.mode is Mode.HUMAN:
        output.stderr.print(screens.ending(ended))
    return ExitCode.DONE if clean(ended.batch) else ExitCode.INCOMPLETE


def lifetime(text: str | None) -> timedelta | None:
    """Read ``--expires-in``. Raises UsageError."""
    if text is None:
        return None
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--expires-in: {error}") from None


def pairs(metadata: Sequence[str]) -> dict[str, str]:
    """Read ``--metadata K=V …``. Raises UsageError."""
    read: dict[str, str] = {}
    for pair in metadata:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--metadata '{pair}' is not of the form KEY=VALUE", hint="--metadata run=17")
        read[key] = value
    return read


@contextmanager
def _bar(output: Output, file: str) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how much of a big file is read."""
    size = _size(file)
    if size < BIG or output.mode is not Mode.HUMAN or not output.stderr.is_terminal:
        yield lambda _size: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=output.stderr, transient=True) as progress:
        task = progress.add_task(one_line(f"reading {file}", limit=60), total=size)
        yield lambda read: progress.update(task, completed=read)


def _size(file: str) -> int:
    """Return how many bytes there are to read; 0 for what is no file."""
    try:
        status = Path(file).stat()
    except OSError:
        return 0
    return status.st_size if file != "-" and stat.S_ISREG(status.st_mode) else 0


def _source(file: str) -> Path | BinaryIO:
    if file != "-":
        return Path(file)
    if sys.stdin is None:
        raise InputUnreadable("Standard input is closed.", hint="vbatch submit - < prompts.jsonl")
    if sys.stdin.isatty():
        sys.stderr.write("reading requests from the terminal, one a line; Ctrl-D ends\n")
    return sys.stdin.buffer


def _explain(output: Output, store: Store, order: Order, done: Submitted) -> None:
    """Tell a person what happens next, on stderr."""
    batch = done.batch
    assert batch is not None
    output.note(screens.accepted(batch))
    if order.reuse is not None:
        output.note(_reused(done, batch))
    elif done.repeats:
        first = done.repeats[0]
        output.warn(
            f"the same file was submitted {ago(first.created_at)} as {first.id} ({first.status.replace('_', ' ')})"
        )
    if not batch.status.final and not workers.at_work(store):
        output.note("no worker is running; start one with: vbatch run-worker")


def _reused(done: Submitted, batch: Batch) -> str:
    if done.reused_from is None:
        return "no earlier batch was made of this file; every request runs"
    taken = f"{count(batch.reused, 'answer')} taken from {done.reused_from.id}"
    return f"{taken}; {count(batch.counts.total - batch.reused, 'request')} to run"


@dataclass(frozen=True, slots=True)
class _Checked:
    done: Submitted

    def ids(self) -> Sequence[str]:
        return []

    def document(self) -> dict[str, Any]:
        return documents.checked(self.done)

    def screen(self) -> RenderableType:
        return f"{count(self.done.requests, 'request')}, all valid; nothing was stored"
