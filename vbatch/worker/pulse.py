"""The heartbeat: it beats only while the worker makes progress, so that a hung one loses its lease."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from datetime import timedelta

from vbatch.errors import Interrupted
from vbatch.worker.notify import notify, watchdog_interval

log = logging.getLogger(__name__)

BEATS_PER_LEASE = 4.5  # at least: three beats may get lost
LONGEST_PAUSE = timedelta(seconds=5)  # the pace that others are told must be fresh
STALLED = timedelta(seconds=60)  # a loop that did not turn for so long hangs; it turns each second


class Pulse:
    """When the worker last made progress, by the monotonic clock.

    ``turn`` is called by every round of the loop. ``excuse`` covers a known long wait in which the loop
    cannot turn: loading a model blocks it for minutes.
    """

    def __init__(self) -> None:
        self._turned = time.monotonic()
        self._excused_until = 0.0
        self._main: asyncio.Task[None] | None = None

    def begin(self) -> None:
        """Say that the present task is the one whose turns count: what goes on beside it proves nothing."""
        self._main = asyncio.current_task()

    def turn(self) -> None:
        """Say that the loop turns, and end any excuse."""
        self._turned = time.monotonic()
        self._excused_until = 0.0

    def excuse(self, limit: timedelta) -> None:
        """Say that the loop will not turn for at most ``limit``."""
        self._excused_until = time.monotonic() + limit.total_seconds()

    def wait(self) -> None:
        """Say that the loop turns while it waits for a thread, such as one that waits for the database."""
        if not self.excused and asyncio.current_task() is self._main:
            self.turn()

    @property
    def alive(self) -> bool:
        """Whether the worker makes progress, or has a reason not to."""
        now = time.monotonic()
        return now < self._excused_until or now - self._turned < STALLED.total_seconds()

    @property
    def excused(self) -> bool:
        """Whether a known long wait is going on."""
        return time.monotonic() < self._excused_until

    @property
    def silent_seconds(self) -> float:
        """How long ago the loop last turned."""
        return time.monotonic() - self._turned


class Heartbeat:
    """A thread that beats in the store and for systemd's watchdog, for as long as the pulse is alive."""

    def __init__(self, pulse: Pulse, beat: Callable[[], None], *, lease: timedelta) -> None:
        self._interval = min(lease / BEATS_PER_LEASE, LONGEST_PAUSE).total_seconds()
        self._pulse = pulse
        self._beat = beat
        self._stop = threading.Event()
        self._watchdog = watchdog_interval()
        self._store_thread = threading.Thread(target=self._beat_store, name="heartbeat", daemon=True)
        self._systemd_thread = threading.Thread(target=self._beat_systemd, name="watchdog", daemon=True)

    def start(self) -> None:
        """Begin to beat."""
        self._store_thread.start()
        if self._watchdog is not None:
            self._systemd_thread.start()

    def stop(self) -> None:
        """End beating. The thread may still be waiting for the database; it is a daemon."""
        self._stop.set()

    def _beat_store(self) -> None:
        while not self._stop.wait(self._interval):
            if self._pulse.alive:
                try:
                    self._beat()
                except Interrupted:  # a stop ends the waiting for a store that is away
                    return
                except Exception:
                    log.exception("heartbeat failed")
            else:
                log.error("worker.hung silent_seconds=%.0f", self._pulse.silent_seconds)

    def _beat_systemd(self) -> None:
        assert self._watchdog is not None
        while not self._stop.wait(self._watchdog.total_seconds()):
            if self._pulse.alive:
                notify("WATCHDOG=1")
            if self._pulse.excused:
                notify(f"EXTEND_TIMEOUT_USEC={4 * self._watchdog // timedelta(microseconds=1)}")
