"""``watch``: follow a batch to its end, as a live block on a terminal and in plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from rich.live import Live

from vbatch import batches
from vbatch.batches import Batch, Status, Store
from vbatch.cli import screens
from vbatch.cli.batch import status_result
from vbatch.cli.output import Mode, Output
from vbatch.cli.startup import open_store
from vbatch.errors import ExitCode
from vbatch.protocol import BatchStatus

PLAIN_LINE = 30.0  # seconds between two lines without a terminal


def watch(reference: str, *, exit_status: bool, blocked_limit: timedelta, json: bool, quiet: bool) -> int:
    """Follow a batch and return the exit code; with ``exit_status`` not longer than it can run."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        try:
            ended = follow(output, store, reference, blocked_limit=blocked_limit if exit_status else None)
        except KeyboardInterrupt:
            output.clear()
            output.note("the batch continues; watch it again with: vbatch watch " + reference)
            return ExitCode.DONE
    output.show(status_result(ended))
    return ExitCode.INCOMPLETE if exit_status and not clean(ended.batch) else ExitCode.DONE


def clean(batch: Batch) -> bool:
    """Return whether every request of the batch was answered."""
    return batch.status is BatchStatus.COMPLETED and batch.counts.failed == 0


def follow(output: Output, store: Store, reference: str, *, blocked_limit: timedelta | None) -> Status:
    """Show a batch until it has ended; return how it ended.

    Raises OnlyBlocked where for so long nothing was left of it but requests for models that cannot be loaded, and
    FilesElsewhere where it was nothing but files that another host is to write.
    """
    updates = batches.watch(store, reference)
    status = next(updates)
    if status.batch.status.final:
        return status
    stuck_since: float | None = None
    warned = output.mode is Mode.HUMAN  # there it is shown all the time
    with _display(output) as show:
        show(status)
        for status in updates:
            if status.batch.status.final:
                break
            show(status)
            host = status.at_work.files_wait_for if status.at_work else None
            if host is not None and not warned:
                output.warn(f"{status.batch.id}: {batches.explained(status.batch, host)}")
                warned = True
            if host is None and not (status.at_work and status.at_work.blocked.entirely):
                stuck_since = None
                continue
            stuck_since = stuck_since or time.monotonic()
            if blocked_limit is not None and time.monotonic() - stuck_since >= blocked_limit.total_seconds():
                raise batches.files_elsewhere(status.batch, host) if host else batches.only_blocked(status)
    return status


@contextmanager
def _display(output: Output) -> Iterator[Callable[[Status], None]]:
    if output.mode is not Mode.HUMAN:
        yield lambda _status: None
    elif not output.stderr.is_terminal:
        yield _Lines(output).show
    else:
        with Live(console=output.stderr, transient=True, auto_refresh=False) as live:
            output.stderr.show_cursor(True)
            yield lambda status: live.update(screens.status(status), refresh=True)


class _Lines:
    """Prints a line when the batch's status changes, and now and then while it moves."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._shown: BatchStatus | None = None
        self._due = 0.0

    def show(self, status: Status) -> None:
        now = time.monotonic()
        if status.batch.status is not self._shown or now >= self._due:
            self._output.note(screens.plain_line(status))
            self._shown, self._due = status.batch.status, now + PLAIN_LINE
