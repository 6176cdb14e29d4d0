"""Work with other servers: every model that they have is served at once, each by a ``Serving`` of its own.

What no server has, or may not answer, is blocked as a model that cannot be loaded is; what a server that is down may
have waits. A remote error convicts no request: nothing is halved, nothing is suspected.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from datetime import timedelta

from vbatch.engine import Blame, Engine, EngineStartFailed
from vbatch.engine.audio import Hearing
from vbatch.engine.endpoint.place import Block
from vbatch.engine.endpoint.pool import Pool, Standing
from vbatch.store import queue
from vbatch.store.records import Lease, LeaseKey, Waiting
from vbatch.worker import models
from vbatch.worker.blocking import Blocking
from vbatch.worker.chat import Chat
from vbatch.worker.context import Context
from vbatch.worker.inflight import Inflight
from vbatch.worker.loop import WorkLoop
from vbatch.worker.pause import Draining
from vbatch.worker.serving import Ended, Serving
from vbatch.worker.showing import show_queue
from vbatch.worker.stop import AT_REST

LOOK = (
    1.0  # seconds between two looks at the queue, and until a model that had nothing to do is looked at again
)
MODELS_AT_ONCE = 8  # each holds bodies and answers of its own in memory


class RemoteLoop(WorkLoop):
    """A worker's life with servers that say which models there are: nothing is loaded, and nothing swapped."""

    async def _work_once(self) -> bool:
        context = self._context
        if context.pausing.active is not None:
            return await super()._work_once()  # it rests
        waiting = await context.in_store(queue.waiting, context.store, closed=self._blocked.endpoints)
        await show_queue(context)
        if waiting:
            self._idle_since = None
        if self._engine is None and waiting:
            self._engine, self._model = await models.load(context, self._kind.name), self._kind.name
        if self._engine is None:
            return await self._rest()
        remote = Remote(
            context,
            self._engine,
            self._blocked,
            chat=self._chat,
            saved=self._finalizer.poke,
            raise_failures=self._raise_failures,
        )
        if not await remote.servable(waiting):
            remote.show()
            return await self._rest()
        self._at_rest = False
        await remote.run()
        self._at_rest = True
        return True


class Remote:
    """The engine ``endpoint`` at work."""

    def __init__(
        self,
        context: Context,
        engine: Engine,
        blocking: Blocking,
        *,
        chat: Chat,
        saved: Callable[[], None],
        raise_failures: Callable[[], None],
    ) -> None:
        assert isinstance(engine, Hearing)
        assert isinstance(engine.inner, Pool)
        self._context = context
        self._engine = engine
        self._pool = engine.inner
        self._blocking = blocking
        self._chat = chat
        self._saved = saved
        self._raise_failures = raise_failures
        self._servings: dict[str, tuple[RemoteServing, asyncio.Task[Ended]]] = {}
        self._ended_at: dict[str, float] = {}

    async def servable(self, waiting: Sequence[Waiting]) -> list[str]:
        """Return the models that a server has, the best first; block what none has, take back what one has again."""
        pool, blocking = self._pool, self._blocking
        pool.turns.priorities = {entry.model: entry.priority for entry in reversed(waiting)}
        due = {entry.model for entry in blocking.without(waiting)}
        for model, urls in list(blocking.endpoints.items()):
            for url in urls:
                if pool.standing(model, url) is Standing.OPEN:
                    await blocking.opened(model, url)
        found = []
        for model in dict.fromkeys(entry.model for entry in waiting):
            standing = pool.standing(model)
            if standing is Standing.OPEN:
                found.append(model)
            elif isinstance(standing, Block) and model in due:
                await blocking.block(model, _cannot(standing))
        return found

    def show(self) -> None:
        """Show what is served, and which servers cannot be used."""
        context = self._context
        requests, prompt, completion = context.meter.rates()
        newest = [serving.batch for serving, _ in self._servings.values() if serving.batch]
        context.view.update(
            model=next(iter(self._servings), None),
            names=tuple(sorted(self._pool.names)),
            batch=newest[0] if newest else None,
            running=self._pool.running,
            trouble=self._pool.trouble,
            requests_per_second=requests,
            prompt_tokens_per_second=prompt,
            completion_tokens_per_second=completion,
        )

    async def run(self) -> None:
        """Serve all models until none has work, or a stop is requested."""
        context = self._context
        try:
            while True:
                context.watchdog.reset()
                self._raise_failures()
                if (failure := self._pool.failure) is not None:
                    raise failure
                await self._collect()
                if not context.stop.requested and context.pausing.active is None:
                    await self._begin()
                if not self._servings:
                    return
                context.view.update(state="working")
                self.show()
                tasks = [task for _, task in self._servings.values()]
                await asyncio.wait(tasks, timeout=LOOK, return_when=asyncio.FIRST_COMPLETED)
        finally:
            tasks = [task for _, task in self._servings.values()]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._servings.clear()
            self.show()

    async def _collect(self) -> None:
        """Take what has ended, and leave in the queue what cannot be answered."""
        for model, (serving, task) in list(self._servings.items()):
            if not task.done():
                continue
            del self._servings[model]
            task.result()
            self._ended_at[model] = time.monotonic()
            if serving.withdrawn is not None and (url := serving.withdrawn[0]):
                await self._blocking.block_endpoint(model, url, _cannot(serving.withdrawn[1]))

    async def _begin(self) -> None:
        context, now = self._context, time.monotonic()
        waiting = await context.in_store(queue.waiting, context.store, closed=self._blocking.endpoints)
        for model in await self.servable(waiting):
            if len(self._servings) >= MODELS_AT_ONCE:
                return
            if model in self._servings or now - self._ended_at.get(model, float("-inf")) < LOOK:
                continue
            await self._blocking.opened(model)
            serving = RemoteServing(
                context,
                self._engine,
                self._pool,
                model,
                chat=self._chat,
                saved=self._saved,
                raise_failures=self._raise_failures,
                blocking=self._blocking,
            )
            self._servings[model] = serving, asyncio.create_task(serving.run())


class RemoteServing(Serving):
    """One model at work. ``withdrawn``: at which url, or at all, no server answers any more, and why."""

    def __init__(
        self,
        context: Context,
        engine: Engine,
        pool: Pool,
        model: str,
        *,
        chat: Chat,
        saved: Callable[[], None],
        raise_failures: Callable[[], None],
        blocking: Blocking,
    ) -> None:
        super().__init__(
            context,
            engine,
            model,
            servable=lambda waiting: waiting,
            saved=saved,
            slept_before=timedelta(),
            raise_failures=raise_failures,
            closed=blocking.endpoints,
            chat=chat,
        )
        self._pool = pool
        self.withdrawn: tuple[str, Block] | None = None
        self._draining = _Draining(context, pool)
        # The time limit of a request counts from when a server has it: the pool sees to that.
        self._inflight = Inflight(engine, limit=pool.room(model), request_timeout=None)
        self._show()

    @property
    def batch(self) -> str | None:
        """The id of the batch that was leased last."""
        return self._inflight.newest_batch

    def _claim_in_store(self, chunks: int, held: frozenset[LeaseKey], room: int) -> list[Lease]:
        """Claim for this model alone: the others are served beside it, and the pool knows the priorities."""
        context, registration = self._context, self._context.registration
        return queue.claim(
            context.store,
            worker=context.worker,
            models=[self._model],
            chunks=chunks,
            held=held,
            closed=self._closed,
            room=room,
            heartbeat=registration.heartbeat,
            on_heartbeat=registration.reached,
        )

    def _stalled(self) -> str | None:
        """Whether a server hangs is seen by its watch. What ends this is that none may answer any more."""
        self.withdrawn = self._pool.stuck(self._model)
        return self.withdrawn[1].reason if self.withdrawn is not None else None

    async def _crashed(self, cause: str) -> Ended:  # noqa: ARG002  (it is in ``withdrawn``)
        """Put back what cannot be answered: no request is at fault."""
        await self._inflight.abandon()
        await self._settle(crashed={})
        return Ended.NO_WORK

    async def _stopped(self) -> Ended:
        await self._inflight.abandon()
        if self._context.stop.requested:
            self._context.stop.abandon_store_after(AT_REST)
        await self._settle(crashed={})
        return Ended.STOPPED

    def _show(self) -> None:
        """Follow the limits of the servers; ``Remote`` shows the rest."""
        self._limit = self._inflight.limit = self._pool.room(self._model)


class _Draining(Draining):
    """What only waits for a server is given up at once."""

    def __init__(self, context: Context, pool: Pool) -> None:
        super().__init__(context)
        self._pool = pool

    def over(self, *, at_rest: bool, running: int) -> bool:
        return super().over(at_rest=at_rest, running=running) or not self._pool.running


def _cannot(block: Block) -> EngineStartFailed:
    return EngineStartFailed(block.reason, transient=False, blame=Blame.MODEL, hint=block.hint)
