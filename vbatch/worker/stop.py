"""How a worker is asked to stop: the first signal drains, the second ends it at once.

SIGHUP, a closed terminal, drains and never counts as the first or the second one: it comes by itself, several
times or before the SIGTERM of a shell or service that goes down with the terminal. SIGQUIT (Ctrl-\\) is one like
Ctrl-C: by default it would leave a core dump, which holds prompts, and a death that has a request suspected.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from types import FrameType

from vbatch.errors import ExitCode

AT_REST = timedelta(seconds=5)  # for the database to answer a worker that stops and has nothing left to save


class Stop:
    """A request to stop that signals, threads and the event loop all can see.

    ``requested``: claim nothing more, finish what runs. ``store`` is the event that interrupts waiting for
    the database; it is set at once while nothing is at stake (``may_abandon_store``), else when the time for it is up.
    """

    def __init__(self) -> None:
        self.requested = False
        self.store = threading.Event()
        self.may_abandon_store = True
        self.on_second: Callable[[], None] = lambda: None
        self.on_exit: Callable[[], None] = lambda: (
            None
        )  # the last that is done where a second signal ends the process
        self._loop: asyncio.AbstractEventLoop | None = None
        self._event = asyncio.Event()

    def attach(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let ``sleep`` be woken by a request that comes from a signal handler or another thread."""
        self._loop = loop
        self._event = asyncio.Event()  # the one of an earlier loop belongs to that
        if self.requested:
            self._event.set()

    def request(self) -> None:
        """Ask the worker to drain. Safe to call from anywhere, any number of times."""
        self.requested = True
        if self.may_abandon_store:
            self.store.set()
        if self._loop is not None:
            with suppress(RuntimeError):  # the loop has ended
                self._loop.call_soon_threadsafe(self._event.set)

    def abandon_store_after(self, limit: timedelta) -> None:
        """Wait no longer than this for the database from now on. Not for signal handlers: it starts a thread."""
        timer = threading.Timer(limit.total_seconds(), self.store.set)
        timer.daemon = True
        timer.start()

    async def wait(self) -> None:
        """Return when a stop is requested."""
        await self._event.wait()

    async def sleep(self, seconds: float) -> None:
        """Sleep, but no longer than until a stop is requested."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return


@contextmanager
def on_signals(stop: Stop) -> Iterator[None]:
    """Turn SIGINT, SIGTERM, SIGQUIT and SIGHUP into a drain.

    A second one of the first three ends the process with what ``on_second`` cleans up. A SIGHUP that is ignored stays
    so (``nohup``).
    """
    asked = False

    def handle(number: int, _frame: FrameType | None) -> None:
        nonlocal asked
        if asked and number != signal.SIGHUP:
            stop.on_second()
            stop.on_exit()
            os._exit(ExitCode.INTERRUPTED if number == signal.SIGINT else 128 + number)
        asked |= number != signal.SIGHUP
        stop.request()

    numbers = [signal.SIGINT, signal.SIGTERM, signal.SIGQUIT]
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        numbers.append(signal.SIGHUP)
    previous = {number: signal.signal(number, handle) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
