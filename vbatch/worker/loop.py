"""Choose what to load, serve it, swap, rest: the worker's life between start and stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Collection, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta

from vbatch import config
from vbatch.engine import Blame, Engine, EngineStartFailed, kinds, names
from vbatch.errors import ConfigError, EngineUnavailable, Interrupted
from vbatch.recovery import dead_workers
from vbatch.store import blocked, finalization, overview, queue, registry
from vbatch.store.records import Waiting
from vbatch.system import suspend
from vbatch.worker import chat_socket, models, pause
from vbatch.worker.blocking import Blocking
from vbatch.worker.chat import Chat
from vbatch.worker.choosing import choose
from vbatch.worker.context import Context
from vbatch.worker.finalizer import Finalizer
from vbatch.worker.serving import Ended, Serving
from vbatch.worker.showing import leave_alone, report_crash, show_queue
from vbatch.worker.stop import AT_REST

log = logging.getLogger(__name__)

LOOK = 1.0  # seconds between two looks at an empty queue
RECOVERY_PAUSE = 10.0  # seconds between two looks at the other workers, at most
RELOAD_PAUSE = 1.0  # seconds after a crash of the engine, doubled at each further one
LONGEST_RELOAD_PAUSE = 60.0
HOPELESS_CRASHES = 8  # in a row, without one good answer: it is not the requests, a person must look


class WorkLoop:
    """One worker's life: at most one engine is loaded at any time."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._kind = kinds.KINDS[context.settings.engine]
        self._finalizer = Finalizer(context)
        self._watch = dead_workers.Watch(context.settings.lease)
        self._engine: Engine | None = None
        self._model: str | None = None
        self._chat = Chat(context)
        self._reload_pause = RELOAD_PAUSE
        self._crashes_in_a_row = 0
        self._idle_since: float | None = None
        self._at_rest = True
        self._blocked = Blocking(context)
        self._slept_before = timedelta()
        self._preload = context.settings.preload
        self._beside: tuple[asyncio.Task[None], ...] = ()

    async def run(self) -> None:
        """Work until a stop is requested or, when draining, until nothing is left that this engine serves.

        Raises EngineUnavailable when no engine can be started at all, StoreMisconfigured when the store
        refuses this worker for good.
        """
        async with chat_socket.serving(self._context, self._chat):
            await self._run()

    async def _run(self) -> None:
        context = self._context
        finalizing = asyncio.create_task(self._finalizer.run())
        recovering = asyncio.create_task(self._recover_regularly())
        limiting = asyncio.create_task(self._limit_the_stop())
        context.pausing.look(context.settings, context.view)
        pausing = asyncio.create_task(context.pausing.watch(context.settings, context.view))
        self._beside = (finalizing, recovering, limiting, pausing)
        try:
            while not context.stop.requested:
                context.watchdog.reset()
                self._raise_failures()
                if not await self._work_once():
                    break
            self._finalizer.close()
            await context.until(finalizing)
            finalizing.result()
        finally:
            for task in self._beside:
                task.cancel()
            await asyncio.gather(*self._beside, return_exceptions=True)
            await self._unload()

    def _raise_failures(self) -> None:
        """Raise what ended a task that runs beside the work, or that the store was replaced."""
        self._context.registration.require()
        for task in self._beside:
            if task.done() and (error := task.exception()) is not None:
                raise error

    async def _work_once(self) -> bool:
        """Take one step; return whether there may be more to do."""
        context = self._context
        if context.pausing.active is not None:
            await self._unload()
            self._preload, self._idle_since = context.settings.preload, None
            return await pause.rest(context, self._raise_failures)
        if self._preload is not None:
            preload, self._preload = self._preload, None
            await self._load(names.base(context.settings, preload, context.vllm_flags))
            return True
        if self._names & self._blocked.reopen():
            await self._unload()
        waiting = await context.in_store(queue.waiting, context.store, closed=self._blocked.endpoints)
        servable = self._servable(waiting)
        model = choose(list(servable.values()), loaded=self._model)
        await show_queue(context)
        if model is None:
            return await self._rest()
        self._idle_since = None
        wanted = {name for name, entry in servable.items() if entry.model == model}
        if lacking := wanted - self._names:
            # first, that they can be had: a wrong name must not cost the model that is loaded
            for name in sorted(lacking):
                if (error := await context.in_files(models.missing, context, name)) is not None:
                    await self._blocked.block(name, error)
                    lacking.discard(name)
            if not lacking:
                return True
            await self._unload()
            await self._load(model, lacking)
        if self._engine is not None:
            await self._serve(self._engine, model)
        return True

    async def _rest(self) -> bool:
        """Wait for work; return whether to continue."""
        context = self._context
        if await self._crashed_at_rest():
            return True
        context.view.update(state="idle", running=0, batch=None)
        if strays := await context.in_store(queue.held_by, context.store, worker=context.worker):
            log.warning("chunks.strayed count=%d", len(strays))
            await context.in_store(queue.release, context.store, worker=context.worker, keys=strays)
            return True
        finalizing = self._finalizer.busy
        left = await context.in_store(overview.left, context.store)
        leave_alone(
            context.view, [backlog for backlog in left.models if not self._kind.serves(backlog.model)]
        )
        if context.drain and not finalizing:
            await self._blocked.record_endpoints()
            works = await context.in_store(blocked.open_work, context.store)
            mine = [work for work in works if self._kind.serves(work.model)]
            if not left.files and all(map(self._blocked.holds, mine)):
                await self._blocked.raise_if_any(mine)
                return False
            self._finalizer.poke()
        now = time.monotonic()
        self._idle_since = max(self._idle_since or now, self._chat.last_at)
        limit = context.settings.idle_unload
        if self._engine is not None and limit is not None and now - self._idle_since > limit.total_seconds():
            log.info("engine.idle seconds=%.0f", now - self._idle_since)
            await self._unload()
        await context.stop.sleep(LOOK)
        return True

    def _servable(self, waiting: Sequence[Waiting]) -> dict[str, Waiting]:
        """Return what this engine serves and may be tried: for each name the work of the model to load for it.

        That is the loaded one where it answers at the name, else what is configured.
        """
        opened = self._blocked.without([entry for entry in waiting if self._kind.serves(entry.model)])
        loaded, settings = self._names, None
        servable = {}
        for entry in opened:
            if entry.model in loaded and self._model is not None:
                base = self._model
            else:
                settings = settings or config.with_present_models(self._context.settings)
                base = names.base(settings, entry.model, self._context.vllm_flags)
            servable[entry.model] = replace(entry, model=base)
        return servable

    @property
    def _names(self) -> frozenset[str]:
        return self._engine.names if self._engine is not None else frozenset()

    async def _serve(self, engine: Engine, model: str) -> None:
        serving = Serving(
            self._context,
            engine,
            model,
            servable=lambda waiting: list(self._servable(waiting).values()),
            saved=self._finalizer.poke,
            slept_before=self._slept_before,
            raise_failures=self._raise_failures,
            closed=self._blocked.endpoints,
            chat=self._chat,
            guarded=self._crashes_in_a_row > 0,
        )
        self._at_rest = False
        ended = await serving.run()
        self._at_rest = True
        self._chat.refuse(None)
        if serving.progressed:
            self._reload_pause = RELOAD_PAUSE
            self._crashes_in_a_row = 0
        if ended is Ended.CRASHED:
            self._finalizer.poke()
            self._crashes_in_a_row += 1
            if self._crashes_in_a_row >= HOPELESS_CRASHES:
                raise EngineUnavailable(
                    f"the engine crashed {self._crashes_in_a_row} times without one answer in between; "
                    f"the last time: {serving.crash_cause}",
                    hint="vbatch doctor gpu engine",
                )
            await self._give_up_engine(model, serving.crash_cause)

    async def _crashed_at_rest(self) -> bool:
        """Load the model again whose engine crashed, or hangs, while chats alone used it; return whether it did."""
        if not self._context.settings.chat or self._engine is None or self._model is None:
            return False
        cause = self._engine.died or self._chat.stalled()
        if cause is None:
            return False
        if self._chat.answered:
            self._reload_pause = RELOAD_PAUSE
        model = self._model
        await self._give_up_engine(model, cause)
        await self._load(model)
        return True

    async def _give_up_engine(self, model: str, cause: str) -> None:
        log.error("engine.died model=%s cause=%s", model, cause)
        await report_crash(self._context, cause)
        await self._unload(cause)
        await self._context.rest(self._reload_pause)
        self._reload_pause = min(self._reload_pause * 2, LONGEST_RELOAD_PAUSE)

    async def _load(self, model: str, wanted: Collection[str] = ()) -> None:
        """Load a model because requests wait for the ``wanted`` names."""
        try:
            self._engine = await models.load(self._context, model)
        except EngineStartFailed as error:
            await self._blame({model, *wanted}, error)
            return
        if self._engine is None:
            return
        self._model = model
        self._chat.attach(self._engine)
        for name in sorted(set(wanted) - self._engine.names - self._engine.refused.keys()):
            await self._blocked.block(name, models.not_served(model, name))
        self._slept_before = suspend.since_boot()
        await self._blocked.loaded(model, self._engine)

    async def _blame(self, names: Collection[str], error: EngineStartFailed) -> None:
        """Continue after a model could not be loaded. Raises where a person must fix the machine or the flags."""
        match error.blame:
            case Blame.FLAGS:
                raise ConfigError(models.cause_and_log(error), hint=error.hint) from error
            case Blame.MACHINE:
                cause = f"cannot load {sorted(names)[0]}: {models.cause_and_log(error)}"
                raise EngineUnavailable(cause, hint=error.hint) from error
        for name in sorted(names):
            await self._blocked.block(name, error)

    async def _unload(self, cause: str | None = None) -> None:
        """Unload the engine when its chats have ended; where it crashed (``cause``), at once."""
        if self._engine is not None and self._model is not None:
            await self._chat.detach(cause or self._engine.died)
            await models.unload(self._context, self._engine, self._model)
        self._engine = self._model = None

    async def _limit_the_stop(self) -> None:
        """Record that a stop is requested, and limit its time: the database may not come back."""
        context = self._context
        await context.stop.wait()
        self._chat.stop()
        context.stop.abandon_store_after(AT_REST if self._at_rest else context.settings.drain_limit)
        with suppress(Interrupted):
            await context.in_store(registry.stopping, context.store, worker=context.worker)

    async def _recover_regularly(self) -> None:
        context = self._context
        pause = min(RECOVERY_PAUSE, context.settings.lease.total_seconds() / 4)
        while True:
            await context.in_watch(
                dead_workers.recover,
                context.store,
                self._watch,
                me=context.worker,
                state_dir=context.settings.state_dir,
            )
            await context.in_watch(dead_workers.sweep, context.store)
            for expired in await context.in_watch(finalization.expire, context.store):
                log.warning("batch.expired batch=%s", expired)
                self._finalizer.poke()
            await self._blocked.record_endpoints()
            await show_queue(context)
            await asyncio.sleep(pause)
