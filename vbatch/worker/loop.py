"""Choose what to load, serve it, swap, rest: the worker's life between start and stop."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from vbatch.engine import Blame, Engine, EngineStartFailed, kinds
from vbatch.errors import ConfigError, EngineUnavailable, Interrupted
from vbatch.recovery import dead_workers
from vbatch.store import catalog, crashes, finalization, overview, queue, registry
from vbatch.store.overview import Backlog
from vbatch.store.records import Waiting
from vbatch.system import suspend
from vbatch.worker import models
from vbatch.worker.blocked import Blocked
from vbatch.worker.context import Context
from vbatch.worker.finalizer import Finalizer
from vbatch.worker.serving import Ended, Serving, choose
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
        self._reload_pause = RELOAD_PAUSE
        self._crashes_in_a_row = 0
        self._idle_since: float | None = None
        self._at_rest = True
        self._blocked = Blocked()
        self._slept_before = timedelta()
        self._beside: tuple[asyncio.Task[None], ...] = ()

    async def run(self) -> None:
        """Work until a stop is requested or, when draining, until nothing is left that this engine serves.

        Raises EngineUnavailable when no engine can be started at all, StoreMisconfigured when the store
        refuses this worker for good.
        """
        context = self._context
        finalizing = asyncio.create_task(self._finalizer.run())
        recovering = asyncio.create_task(self._recover_regularly())
        limiting = asyncio.create_task(self._limit_the_stop())
        self._beside = (finalizing, recovering, limiting)
        try:
            if context.settings.preload is not None:
                await self._load(context.settings.preload)
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
        """Raise what ended a task that runs beside the work."""
        for task in self._beside:
            if task.done() and (error := task.exception()) is not None:
                raise error

    async def _work_once(self) -> bool:
        """Take one step; return whether there may be more to do."""
        context = self._context
        waiting = await context.in_store(queue.waiting, context.store)
        model = choose(self._servable(waiting), loaded=self._model)
        await self._show_queue()
        if model is None:
            self._raise_if_blocked(waiting)
            return await self._rest()
        self._idle_since = None
        if model != self._model:
            await self._unload()
            await self._load(model)
        if self._engine is not None:
            await self._serve(self._engine, model)
        return True

    async def _rest(self) -> bool:
        """Wait for work; return whether to continue."""
        context = self._context
        context.view.update(state="idle", running=0, batch=None)
        if strays := await context.in_store(queue.held_by, context.store, worker=context.worker):
            log.warning("chunks.strayed count=%d", len(strays))
            await context.in_store(queue.release, context.store, worker=context.worker, keys=strays)
            return True
        finalizing = self._finalizer.busy
        left = await context.in_store(overview.left, context.store)
        self._leave_alone([backlog for backlog in left.models if not self._kind.serves(backlog.model)])
        if context.drain and not finalizing:
            if not left.files and not any(self._kind.serves(backlog.model) for backlog in left.models):
                return False
            self._finalizer.poke()
        now = time.monotonic()
        self._idle_since = self._idle_since or now
        limit = context.settings.idle_unload
        if self._engine is not None and limit is not None and now - self._idle_since > limit.total_seconds():
            log.info("engine.idle seconds=%.0f", now - self._idle_since)
            await self._unload()
        await context.stop.sleep(LOOK)
        return True

    def _servable(self, waiting: Sequence[Waiting]) -> list[Waiting]:
        """Return what waits for models that this engine serves and that may be tried."""
        return self._blocked.without([entry for entry in waiting if self._kind.serves(entry.model)])

    def _leave_alone(self, others: Sequence[Backlog]) -> None:
        """Show what waits for a worker with another engine, and log each model once."""
        view = self._context.view
        known = {backlog.model for backlog in view.snapshot.left_alone}
        waiting = tuple(backlog for backlog in others if backlog.waiting)
        view.update(left_alone=waiting)
        for model, requests in ((backlog.model, backlog.waiting) for backlog in waiting):
            if model not in known:
                engine, command = kinds.for_model(model).name, kinds.worker_command(model)
                log.warning(
                    "model.left_alone model=%s requests=%d engine=%s command=%s",
                    model, requests, engine, command,
                )  # fmt: skip

    async def _serve(self, engine: Engine, model: str) -> None:
        serving = Serving(
            self._context,
            engine,
            model,
            servable=self._servable,
            saved=self._finalizer.poke,
            slept_before=self._slept_before,
            raise_failures=self._raise_failures,
        )
        self._at_rest = False
        ended = await serving.run()
        self._at_rest = True
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
            log.error("engine.died model=%s cause=%s", model, serving.crash_cause)
            await self._report_crash(serving.crash_cause)
            await self._unload()
            await self._context.rest(self._reload_pause)
            self._reload_pause = min(self._reload_pause * 2, LONGEST_RELOAD_PAUSE)

    async def _report_crash(self, cause: str) -> None:
        """Show it on the terminal until the engine is loaded again, and at once in ``vbatch status``."""
        context = self._context
        crashes = context.view.snapshot.engine_crashes + 1
        context.view.update(engine_crashes=crashes, crash_cause=cause, trouble=None)
        note = context.view.snapshot.note
        context.view.update(trouble=note)
        loaded = [self._model] if self._model else []
        await context.in_store(
            registry.heartbeat, context.store, worker=context.worker, models=loaded, note=note
        )

    async def _load(self, model: str) -> None:
        try:
            self._engine = await models.load(self._context, model)
        except EngineStartFailed as error:
            await self._blame(model, error)
            return
        if self._engine is None:
            return
        self._model = model
        self._slept_before = suspend.since_boot()
        for other, fault in self._blocked.loaded(model).items():
            await self._give_up_on(other, fault)

    async def _blame(self, model: str, error: EngineStartFailed) -> None:
        """Continue after a model could not be loaded. Raises where a person must fix the machine or the flags."""
        match error.blame:
            case Blame.FLAGS:
                raise ConfigError(models.cause_and_log(error), hint=error.hint) from error
            case Blame.MACHINE:
                raise _unavailable(model, error) from error
        if self._blocked.failed(model, error):
            await self._give_up_on(model, error)
        else:
            log.warning("model.set_aside model=%s cause=%s", model, models.cause_and_log(error))

    def _raise_if_blocked(self, waiting: Sequence[Waiting]) -> None:
        """Raise EngineUnavailable where only blocked models have requests waiting."""
        if (reason := self._blocked.reason(waiting)) is not None:
            model, error = reason
            raise _unavailable(model, error) from error

    async def _give_up_on(self, model: str, error: EngineStartFailed) -> None:
        """Fail what waits for a model that cannot be loaded; the rest of the queue continues.

        Where another worker has it loaded, leave it to that one for a while.
        """
        context, cause = self._context, models.cause_and_log(error)
        failed = await context.in_store(
            crashes.fail_model,
            context.store,
            worker=context.worker,
            model=model,
            code="model_not_loaded",
            message=f"The model {model} could not be loaded: {error.cause}",
        )
        context.view.update(trouble=f"{model} could not be loaded: {cause}")
        if failed is None:
            log.warning("model.left_to_others model=%s cause=%s", model, cause)
            self._blocked.leave_to_others(model)
            return
        log.error("model.failed model=%s requests=%d cause=%s", model, failed, cause)
        self._finalizer.poke()

    async def _unload(self) -> None:
        if self._engine is not None and self._model is not None:
            await models.unload(self._context, self._engine, self._model)
        self._engine = self._model = None

    async def _limit_the_stop(self) -> None:
        """Record that a stop is requested, and limit its time: the database may not come back."""
        context = self._context
        await context.stop.wait()
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
            for expired in await context.in_watch(finalization.expire, context.store, now=datetime.now(UTC)):
                log.warning("batch.expired batch=%s", expired)
                self._finalizer.poke()
            await self._show_queue()
            await asyncio.sleep(pause)

    async def _show_queue(self) -> None:
        context = self._context
        progress = await context.in_store(catalog.progress, context.store)
        context.view.update(
            batches=progress.unfinished_batches,
            total=progress.total,
            completed=progress.completed,
            failed=progress.failed,
        )


def _unavailable(model: str, error: EngineStartFailed) -> EngineUnavailable:
    return EngineUnavailable(f"cannot load {model}: {models.cause_and_log(error)}", hint=error.hint)
