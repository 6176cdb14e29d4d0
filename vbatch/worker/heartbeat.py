"""The heartbeat: sent only while the worker makes progress, so that a worker that hangs loses its lease."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from vbatch.errors import Interrupted
from vbatch.worker.systemd import notify, watchdog_interval

log = logging.getLogger(__name__)

HEARTBEATS_PER_LEASE = 4.5  # at least: three heartbeats may get lost
LONGEST_PAUSE = timedelta(seconds=5)  # each heartbeat carries the pace, which others show as the present one
LAST_REPORT = 2.0  # seconds that the end of a worker waits for a report that is under way
STALLED = timedelta(seconds=60)  # an event loop without a turn for this time hangs; it turns each second


class Watchdog:
    """When the worker last made progress, by the monotonic clock.

    Each round of the loop resets it. ``suspend`` covers a known long wait in which the loop cannot turn: loading a
    model blocks it for minutes.
    """

    def __init__(self) -> None:
        self._reset_at = time.monotonic()
        self._suspended_until = 0.0
        self._main: asyncio.Task[None] | None = None

    def attach(self) -> None:
        """Make the present task the one whose progress counts: the tasks beside it prove nothing."""
        self._main = asyncio.current_task()

    def reset(self) -> None:
        """Note progress, and end any suspension."""
        self._reset_at = time.monotonic()
        self._suspended_until = 0.0

    def suspend(self, limit: timedelta) -> None:
        """Expect no progress for at most ``limit``."""
        self._suspended_until = time.monotonic() + limit.total_seconds()

    def waiting(self) -> None:
        """Note that the loop turns while it waits for a thread, such as one that waits for the database."""
        if not self.suspended and asyncio.current_task() is self._main:
            self.reset()

    @property
    def alive(self) -> bool:
        """Whether the worker makes progress, or has a reason not to."""
        return self.suspended or self.silent_seconds < STALLED.total_seconds()

    @property
    def suspended(self) -> bool:
        """Whether a known long wait lasts."""
        return time.monotonic() < self._suspended_until

    @property
    def silent_seconds(self) -> float:
        """How long ago the loop last made progress."""
        return time.monotonic() - self._reset_at


class Heartbeat:
    """Two threads that report to the store and to systemd's watchdog, for as long as the worker's own is alive."""

    def __init__(self, watchdog: Watchdog, report: Callable[[], None], *, lease: timedelta) -> None:
        self._pause = min(lease / HEARTBEATS_PER_LEASE, LONGEST_PAUSE).total_seconds()
        self._watchdog = watchdog
        self._report = report
        self._stop = threading.Event()
        self._systemd_interval = watchdog_interval()
        self._store_thread = threading.Thread(target=self._to_store, name="heartbeat", daemon=True)
        self._systemd_thread = threading.Thread(target=self._to_systemd, name="watchdog", daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._store_thread.start()
        if self._systemd_interval is not None:
            self._systemd_thread.start()

    def stop(self) -> None:
        """End them. One that still waits for the database is left behind, and reports nothing any more."""
        self._stop.set()
        self._store_thread.join(LAST_REPORT)

    def _to_store(self) -> None:
        while not self._stop.wait(self._pause):
            if self._watchdog.alive:
                try:
                    self._report()
                except Interrupted:  # a stop ends the waiting for a store that is unreachable
                    return
                except Exception as error:
                    if self._stop.is_set():  # the store is being closed
                        return
                    log.exception("worker.heartbeat_failed error=%s", error)
            else:
                log.error("worker.hung silent_seconds=%.0f", self._watchdog.silent_seconds)

    def _to_systemd(self) -> None:
        assert self._systemd_interval is not None
        while not self._stop.wait(self._systemd_interval.total_seconds()):
            if self._watchdog.alive:
                notify("WATCHDOG=1")
            if self._watchdog.suspended:
                notify(f"EXTEND_TIMEOUT_USEC={4 * self._systemd_interval // timedelta(microseconds=1)}")
