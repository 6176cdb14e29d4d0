"""Tell systemd what the worker does, and that neither a long start nor a long stop is a hung one."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from vbatch.text import one_line
from vbatch.worker.notify import notify
from vbatch.worker.progress import Snapshot, View

ROUND = timedelta(seconds=1)
EXTENSION = timedelta(seconds=60)
LONGEST_MIGRATION = timedelta(hours=1)  # a start that says nothing for longer hangs
AFTER_DRAIN = timedelta(minutes=1)  # to save, to write files and to unload, when the drain limit is over
LONGEST_STATUS = 200  # characters: one line of `systemctl status`


@contextmanager
def announced(view: View, *, stopping: Callable[[], bool], drain_limit: timedelta) -> Iterator[None]:
    """Announce from a thread until the block is left. Costs nothing where no service manager listens.

    The unit's own stop limit may be of a time when ``drain_limit`` was lower: a stop is extended up to it.
    """
    over = threading.Event()
    thread = threading.Thread(
        target=_announce, args=(view, stopping, drain_limit, over), name="announce", daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        over.set()


def status(snapshot: Snapshot, *, stopping: bool) -> str:
    """Say in one line what the worker does, or what it waits for."""
    if snapshot.waiting_for is not None:
        words = f"waiting for {snapshot.waiting_for}"
    elif stopping:
        words = f"stopping: {snapshot.running} requests may still finish"
    elif snapshot.state == "working":
        words = _working(snapshot)
    elif snapshot.state == "idle":
        waits = "no batch" if not snapshot.left_alone else "nothing that this engine serves"
        words = f"idle: {waits} is waiting"
    else:
        words = snapshot.state
    if snapshot.trouble is not None:
        words += f" ({snapshot.trouble})"
    return one_line(words, limit=LONGEST_STATUS)


def _working(snapshot: Snapshot) -> str:
    done = snapshot.completed + snapshot.failed
    percent = 100 * done // snapshot.total if snapshot.total else 0
    what = f"{snapshot.batches} batches" if snapshot.batches > 1 else snapshot.batch or "batch"
    words = f"{what}: {done:,} of {snapshot.total:,} requests ({percent} %)"
    if snapshot.remaining_seconds is None:
        return words
    left = timedelta(seconds=round(snapshot.remaining_seconds))
    return f"{words}, {snapshot.requests_per_second:.1f}/s, {left} left"


def _announce(
    view: View, stopping: Callable[[], bool], drain_limit: timedelta, over: threading.Event
) -> None:
    last = ""
    started = stopped = timedelta()  # how long the worker has been starting or stopping
    while not over.wait(ROUND.total_seconds()):
        snapshot, stops = view.snapshot, stopping()
        if stops:
            stopped += ROUND
            has_reason = stopped < drain_limit + AFTER_DRAIN
        else:
            started += ROUND
            waits = snapshot.waiting_for is not None or started < LONGEST_MIGRATION
            has_reason = snapshot.state == "starting" and waits
        if has_reason:
            notify(f"EXTEND_TIMEOUT_USEC={EXTENSION // timedelta(microseconds=1)}")
        if (words := status(snapshot, stopping=stops)) != last:
            last = words
            notify(f"STATUS={words}")
