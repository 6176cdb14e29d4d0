"""``watch``: follow a batch to its end, as a live block on a terminal and in plain lines elsewhere."""

from __future__ import annotations

import time
from collections import deque
from datetime import timedelta

from rich.live import Live

from vbatch import batches
from vbatch.batches import Status
from vbatch.cli import screens, workers
from vbatch.cli.batch import StatusView
from vbatch.cli.output import Mode, Output
from vbatch.cli.startup import open_store
from vbatch.errors import ExitCode
from vbatch.protocol import BatchStatus
from vbatch.store import Store, catalog
from vbatch.store.records import Batch

LOOK = 1.0  # seconds between two looks at the store
PLAIN_LINE = 30.0  # seconds between two lines without a terminal
PACE_WINDOW = 60  # looks over which the pace is measured


def watch(ref: str, *, exit_status: bool, json: bool, quiet: bool) -> int:
    """Follow a batch and return the exit code."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        ended = follow(output, store, ref)
    output.show(StatusView(ended, None))
    return ExitCode.INCOMPLETE if exit_status and not clean(ended.batch) else ExitCode.DONE


def clean(batch: Batch) -> bool:
    """Say whether every request of the batch was answered."""
    return batch.status is BatchStatus.COMPLETED and batch.counts.failed == 0


def follow(output: Output, store: Store, ref: str) -> Status:
    """Show a batch until it has ended; return how it did."""
    batch = catalog.find(store, ref)
    if not batch.status.final:
        if output.mode is not Mode.HUMAN:
            _wait(store, batch)
        elif output.stderr.is_terminal:
            _show_live(output, store, batch)
        else:
            _show_lines(output, store, batch)
    return batches.status(store, batch.id)


def _wait(store: Store, batch: Batch) -> None:
    while not batch.status.final:
        batch = _look(store, batch)


def _show_live(output: Output, store: Store, batch: Batch) -> None:
    pace = _Pace()
    with Live(console=output.stderr, transient=True, auto_refresh=False) as live:
        output.stderr.show_cursor(True)
        while not batch.status.final:
            active = workers.in_words(workers.at_work(store))
            live.update(screens.status(pace.of(batch), worker=active), refresh=True)
            batch = _look(store, batch)


def _show_lines(output: Output, store: Store, batch: Batch) -> None:
    """Print a line when the batch's status changes, and now and then while it moves."""
    pace = _Pace()
    said: BatchStatus | None = None
    due = 0.0
    while not batch.status.final:
        status = pace.of(batch)
        if batch.status is not said or time.monotonic() >= due:
            output.note(screens.plain_line(status))
            said, due = batch.status, time.monotonic() + PLAIN_LINE
        batch = _look(store, batch)


def _look(store: Store, batch: Batch) -> Batch:
    """Look again. The kinds of failure are left for the end: counting them reads every chunk that has one."""
    time.sleep(LOOK)
    return catalog.by_pk(store, pk=batch.pk)


class _Pace:
    """The pace of this batch alone over the last looks, where ``status`` only knows that of its workers."""

    def __init__(self) -> None:
        self._seen: deque[tuple[float, int]] = deque(maxlen=PACE_WINDOW)

    def of(self, batch: Batch) -> Status:
        """Return how the batch stands; no pace in the first seconds."""
        done = batch.counts.completed + batch.counts.failed
        self._seen.append((time.monotonic(), done))
        (since, before), (now, _) = self._seen[0], self._seen[-1]
        pace = (done - before) / (now - since) if now - since >= 2 * LOOK else 0.0
        left = timedelta(seconds=(batch.counts.total - done) / pace) if pace else None
        return Status(batch=batch, failures=(), requests_per_second=pace or None, remaining=left)
