"""What every part of one worker shares: its store, its settings, its name, and how it is asked to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import ParamSpec, TypeVar

from vbatch.config import Settings
from vbatch.gpu_memory.cards import Assigned
from vbatch.store import Store
from vbatch.worker.heartbeat import Watchdog
from vbatch.worker.pause import Pausing
from vbatch.worker.progress import Meter, View
from vbatch.worker.registration import Registration
from vbatch.worker.stop import Stop

P = ParamSpec("P")
T = TypeVar("T")

TURN = 1.0  # seconds between two resets of the watchdog while a call lasts


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """One worker's surroundings. The work, the files and the watch over other workers have a store thread each.

    ``gpus``: None where vLLM does not compute on a GPU. ``drain``: end when the queue is empty. ``vllm_flags`` apply to
    every model, after those of the settings.
    """

    store: Store
    settings: Settings
    drain: bool = False
    vllm_flags: tuple[str, ...] = ()
    gpus: Assigned | None = None
    registration: Registration
    view: View
    stop: Stop
    watchdog: Watchdog
    meter: Meter = field(default_factory=Meter)
    pausing: Pausing = field(default_factory=Pausing)
    _store_thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="store")
    )
    _file_thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="files")
    )
    _watch_thread: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, thread_name_prefix="watch")
    )

    @property
    def worker(self) -> str:
        """The worker's id in the store."""
        return self.registration.worker

    async def in_store(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a store operation without holding up the event loop. It waits for as long as an outage lasts."""
        return await self._run(self._store_thread, call, *args, **kwargs)

    async def in_files(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call something slow that reads the store and writes files, beside the store's own thread."""
        return await self._run(self._file_thread, call, *args, **kwargs)

    async def in_watch(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call what looks after other workers: it may have to wait for the locks of one that hangs."""
        return await self._run(self._watch_thread, call, *args, **kwargs)

    async def rest(self, seconds: float) -> None:
        """Sleep, but no longer than until a stop is requested, and reset the watchdog."""
        end = time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0 and not self.stop.requested:
            await self.stop.sleep(min(left, TURN))
            self.watchdog.waiting()

    async def until(self, task: asyncio.Future[T]) -> None:
        """Wait for another task or thread, however long that takes, and reset the watchdog."""
        while not task.done():
            await asyncio.wait([task], timeout=TURN)
            self.watchdog.waiting()

    def close(self) -> None:
        """Let the threads end; one that waits for the database is left behind."""
        self._store_thread.shutdown(wait=False, cancel_futures=True)
        self._file_thread.shutdown(wait=False, cancel_futures=True)
        self._watch_thread.shutdown(wait=False, cancel_futures=True)

    def finish(self) -> None:
        """Wait for the calls of the threads: none of them may reach the store that is opened next."""
        for thread in (self._store_thread, self._file_thread, self._watch_thread):
            thread.shutdown(cancel_futures=True)

    async def _run(
        self, thread: ThreadPoolExecutor, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs
    ) -> T:
        future = asyncio.get_running_loop().run_in_executor(thread, lambda: call(*args, **kwargs))
        future.add_done_callback(_seen)
        await self.until(future)
        return future.result()


def _seen(future: asyncio.Future[T]) -> None:
    """Retrieve the failure of a call whose caller was cancelled: asyncio would log it as unretrieved."""
    if not future.cancelled():
        future.exception()


class Background:
    """One call that runs beside the loop, never twice at once."""

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
        """Wait for it to end, however long the store is unreachable; its failure is kept."""
        if self._task is not None:
            await self._context.until(self._task)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._task = None
        self._ended = time.monotonic()
        if not task.cancelled():
            self.failure = task.exception()
