"""Tell systemd, while anything changes, what the worker does, and that a long start is no hung one."""

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
LONGEST_STATUS = 200  # characters: one line of `systemctl status`


@contextmanager
def announced(view: View, *, stopping: Callable[[], bool]) -> Iterator[None]:
    """Announce from a thread until the block is left. Costs nothing where no service manager listens."""
    over = threading.Event()
    thread = threading.Thread(target=_announce, args=(view, stopping, over), name="announce", daemon=True)
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
        words = "idle: no batch is waiting"
    else:
        words = snapshot.state
    if snapshot.trouble is not None:
        words += f" ({snapshot.trouble})"
    return one_line(words, limit=LONGEST_STATUS)


def _working(snapshot: Snapshot) -> str:
    done = snapshot.completed + snapshot.failed
    percent = 100 * done // snapshot.total if snapshot.total else 0
    words = f"{snapshot.batch or 'batch'}: {done:,} of {snapshot.total:,} requests ({percent} %)"
    if snapshot.remaining_seconds is None:
        return words
    left = timedelta(seconds=round(snapshot.remaining_seconds))
    return f"{words}, {snapshot.requests_per_second:.1f}/s, {left} left"


def _announce(view: View, stopping: Callable[[], bool], over: threading.Event) -> None:
    last = ""
    rounds = 0
    while not over.wait(ROUND.total_seconds()):
        rounds += 1
        snapshot = view.snapshot
        has_reason = snapshot.waiting_for is not None or rounds * ROUND < LONGEST_MIGRATION
        if snapshot.state == "starting" and has_reason:
            notify(f"EXTEND_TIMEOUT_USEC={EXTENSION // timedelta(microseconds=1)}")
        if (words := status(snapshot, stopping=stopping())) != last:
            last = words
            notify(f"STATUS={words}")
