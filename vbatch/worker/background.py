"""What a worker has its store do beside the work."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine

from vbatch.worker.context import Context


class Background:
    """One call that goes on beside the loop, never twice at once."""

    def __init__(self, context: Context, call: Callable[[], Coroutine[None, None, None]]) -> None:
        self._context = context
        self._call = call
        self._task: asyncio.Task[None] | None = None
        self._ended = time.monotonic()
        self.failure: BaseException | None = None

    @property
    def running(self) -> bool:
        return self._task is not None

    def ready(self, pause: float) -> bool:
        """Whether it does not run, and ended at least so many seconds ago."""
        return self._task is None and time.monotonic() - self._ended >= pause

    def start(self) -> None:
        self._task = asyncio.create_task(self._call())
        self._task.add_done_callback(self._done)

    async def finish(self) -> None:
        """Wait for it to end, however long the store is away; its failure is kept."""
        if self._task is not None:
            await self._context.until(self._task)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._ended = time.monotonic()
        if not task.cancelled():
            self.failure = task.exception()
