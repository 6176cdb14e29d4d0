"""What every part of one worker shares: its store, its options, its name, and how it is asked to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from vbatch.store import Store
from vbatch.worker.options import WorkerOptions
from vbatch.worker.progress import Meter, View
from vbatch.worker.pulse import Pulse
from vbatch.worker.stop import Stop

P = ParamSpec("P")
T = TypeVar("T")

ROUND = 1.0  # seconds between two signs of life while a call lasts


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One worker's surroundings. The work, the files and the watch over other workers have a store thread each."""

    store: Store
    options: WorkerOptions
    worker: str
    view: View
    stop: Stop
    pulse: Pulse
    meter: Meter = field(default_factory=Meter)
    _store_thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="store")
    )
    _file_thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="files")
    )
    _watch_thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="watch")
    )

    async def in_store(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a store operation without holding up the event loop. It waits for as long as an outage lasts."""
        return await self._run(self._store_thread, call, *args, **kwargs)

    async def in_files(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call something slow that reads the store and writes files, beside the store's own thread."""
        return await self._run(self._file_thread, call, *args, **kwargs)

    async def in_watch(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what looks after others: it may have to wait for the locks of a worker that hangs."""
        return await self._run(self._watch_thread, call, *args, **kwargs)

    async def rest(self, seconds: float) -> None:
        """Sleep, but no longer than until a stop is requested, and show that we live."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.stop.requested:
            await self.stop.sleep(min(left, ROUND))
            self.pulse.wait()

    async def until(self, task: asyncio.Task[None]) -> None:
        """Wait for another task of ours, however long that takes, and show that we live."""
        while not task.done():
            await asyncio.wait([task], timeout=ROUND)
            self.pulse.wait()

    def close(self) -> None:
        """Let the threads end; one that waits for the database is left behind."""
        self._store_thread.shutdown(wait=False, cancel_futures=True)
        self._file_thread.shutdown(wait=False, cancel_futures=True)
        self._watch_thread.shutdown(wait=False, cancel_futures=True)

    async def _run(
        self, thread: ThreadPoolExecutor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        future = asyncio.get_running_loop().run_in_executor(thread, lambda: call(*args, **kwargs))
        future.add_done_callback(_seen)
        while not future.done():
            await asyncio.wait([future], timeout=ROUND)
            self.pulse.wait()
        return future.result()


def _seen(future: asyncio.Future[T]) -> None:
    """Take note of a failure that nobody waits for any more: who called was cancelled."""
    if not future.cancelled():
        future.exception()
