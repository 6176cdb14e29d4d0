"""What systemd hears from a worker: its state (sd_notify(3)), and that a long start or stop is not a hung one."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta

from vbatch.text import one_line
from vbatch.worker.progress import Snapshot, View

PAUSE = timedelta(seconds=1)  # between two looks at what the worker does
EXTENSION = timedelta(seconds=60)
LONGEST_MIGRATION = timedelta(hours=1)  # a start that waits for nothing and takes longer hangs
AFTER_DRAIN = timedelta(minutes=1)  # to save, to write files and to unload, when the drain limit is over
LONGEST_STATUS = 200  # characters: one line of `systemctl status`


def notify(*assignments: str) -> None:
    """Send assignments such as ``READY=1`` or ``STATUS=…`` as a datagram. Without a service manager, do nothing."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.sendall("\n".join(assignments).encode())
        except OSError:
            return


def watchdog_interval() -> timedelta | None:
    """Return how often systemd wants to hear ``WATCHDOG=1``: half its limit (sd_watchdog_enabled(3))."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID")
    if not microseconds.isdigit() or (pid is not None and pid != str(os.getpid())):
        return None
    return timedelta(microseconds=int(microseconds)) / 2


@contextmanager
def announced(view: View, *, stopping: Callable[[], bool], drain_limit: timedelta) -> Iterator[None]:
    """Announce from a thread until the block is left. Costs nothing without a service manager.

    The unit's own stop limit may date from when ``drain_limit`` was lower: a stop is extended up to it.
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


def _announce(
    view: View, stopping: Callable[[], bool], drain_limit: timedelta, over: threading.Event
) -> None:
    last = ""
    started = stopped = timedelta()  # how long the worker has been starting or stopping
    while not over.wait(PAUSE.total_seconds()):
        snapshot, stops = view.snapshot, stopping()
        if stops:
            stopped += PAUSE
            has_reason = stopped < drain_limit + AFTER_DRAIN
        else:
            started += PAUSE
            waits = snapshot.waiting_for is not None or started < LONGEST_MIGRATION
            has_reason = snapshot.state == "starting" and waits
        if has_reason:
            notify(f"EXTEND_TIMEOUT_USEC={EXTENSION // timedelta(microseconds=1)}")
        if (line := status(snapshot, stopping=stops)) != last:
            last = line
            notify(f"STATUS={line}")


def status(snapshot: Snapshot, *, stopping: bool) -> str:
    """Return in one line what the worker does, or what it waits for."""
    if snapshot.waiting_for is not None:
        line = f"waiting for {snapshot.waiting_for}"
    elif stopping:
        line = f"stopping: {snapshot.running} requests may still finish"
    elif snapshot.paused is not None:
        line = snapshot.paused + (
            f": {snapshot.running} requests may still finish" if snapshot.running else ""
        )
    elif snapshot.state == "working":
        line = _working(snapshot)
    elif snapshot.state == "idle":
        waits = "no batch" if not snapshot.left_alone else "nothing that this engine serves"
        line = f"idle: {waits} is waiting"
    else:
        line = snapshot.state
    if snapshot.trouble is not None:
        line += f" ({snapshot.trouble})"
    return one_line(line, limit=LONGEST_STATUS)


def _working(snapshot: Snapshot) -> str:
    done = snapshot.completed + snapshot.failed
    percent = 100 * done // snapshot.total if snapshot.total else 0
    what = f"{snapshot.batches} batches" if snapshot.batches > 1 else snapshot.batch or "batch"
    line = f"{what}: {done:,} of {snapshot.total:,} requests ({percent} %)"
    if snapshot.remaining_seconds is None:
        return line
    left = timedelta(seconds=round(snapshot.remaining_seconds))
    return f"{line}, {snapshot.requests_per_second:.1f}/s, {left} left"
