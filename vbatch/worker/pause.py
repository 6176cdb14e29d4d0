"""What a pause does to a worker: it claims nothing more, what runs finishes, and the GPU's memory is given back.

Whoever decides by it asks ``Context.pausing.active``; what it means is in ``vbatch.pausing``.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from vbatch import pausing
from vbatch.config import Settings
from vbatch.pausing import Pause
from vbatch.worker.progress import View

if TYPE_CHECKING:
    from vbatch.worker.context import Context

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks at the files and the clock


class Pausing:
    """The pause of one worker, as it was at the last look."""

    def __init__(self) -> None:
        self.active: Pause | None = None
        self._begun = asyncio.Event()

    def look(self, settings: Settings, view: View) -> None:
        """Look once. Where a file is there and cannot be read, all stays as it was."""
        try:
            found = pausing.active(settings)
        except OSError as error:
            log.debug("pause.unreadable error=%s", error)
            return
        if (found is None) != (self.active is None):
            if found is None:
                log.info("worker.resumed")
            else:
                log.info("worker.paused reason=%s", found.words)
        self.active = found
        view.update(paused=found.words if found is not None else None)
        if found is None:
            self._begun.clear()
        else:
            self._begun.set()

    async def watch(self, settings: Settings, view: View) -> None:
        """Look regularly until this task is cancelled."""
        while True:
            self.look(settings, view)
            await asyncio.sleep(LOOK)

    async def wait(self) -> None:
        """Return when there is a pause."""
        await self._begun.wait()


class Draining:
    """Whether the work with one engine is to end: at a stop within the drain limit, at a pause when nothing runs.

    Once begun it is carried to its end, though the pause may be over by then: what was leased and has not started was
    dropped.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._pausing = False
        self._deadline: float | None = None

    @property
    def wanted(self) -> bool:
        """Whether nothing more is to be claimed."""
        self._pausing |= self._context.pausing.active is not None
        return self._pausing or self._context.stop.requested

    def over(self, *, at_rest: bool, running: int) -> bool:
        """Return whether what still runs is not waited for."""
        context, now = self._context, time.monotonic()
        if context.stop.requested:
            if self._deadline is None:
                self._deadline = now + context.settings.drain_limit.total_seconds()
                log.info("worker.draining running=%d", running)
            return at_rest or now > self._deadline
        pause = context.pausing.active
        return at_rest or (pause is not None and pause.now)


async def rest(context: Context, raise_failures: Callable[[], None]) -> bool:
    """Wait until the pause is over, or a stop is requested; return whether to continue: one that drains does not wait.

    ``Snapshot.paused`` then stays, for whoever reports how it ended.
    """
    if context.drain and not context.stop.requested:
        log.warning("worker.drain_paused reason=%s", context.view.snapshot.paused)
        return False
    while context.pausing.active is not None and not context.stop.requested:
        context.view.update(state="paused", running=0, batch=None)
        context.watchdog.reset()
        raise_failures()
        await context.stop.sleep(LOOK)
    return True
