"""Load the engine for a model: where its files are, with which flags, and how often to try."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from vbatch import config
from vbatch.config import Settings
from vbatch.config.tables import ModelSettings
from vbatch.engine import Blame, Engine, EngineStartFailed, courtesy, models, names
from vbatch.engine.audio import Hearing
from vbatch.engine.kinds import KINDS, Load
from vbatch.engine.models import Availability
from vbatch.errors import StoreReplaced
from vbatch.gpu_memory import cards
from vbatch.gpu_memory import check as memory_check
from vbatch.outbound.fetch import Limits
from vbatch.recovery import evidence, orphans
from vbatch.store import registry
from vbatch.store.records import BlockedModel, EngineProcess
from vbatch.system import descendants, processes
from vbatch.text import harmless, one_line
from vbatch.worker.context import Context

log = logging.getLogger(__name__)

ATTEMPTS = 3
PAUSE = timedelta(seconds=10)
LONGEST_LOAD = timedelta(hours=2)  # a first load may download and compile; a load that takes longer hangs


async def load(context: Context, model: str) -> Engine | None:
    """Load a model's engine, and write its processes into the ledger. None when a stop or pause was meanwhile.

    Raises EngineStartFailed after the last attempt, or at once where trying again cannot help.
    """
    for attempt in range(1, ATTEMPTS + 1):
        if context.stop.requested or context.pausing.active is not None:
            return None
        context.view.update(state=f"loading {model}", model=model, trouble=None)
        context.watchdog.suspend(LONGEST_LOAD)
        log.info("engine.loading model=%s attempt=%d", model, attempt)
        try:
            engine = await _load(context, model)
        except EngineStartFailed as error:
            log.warning(
                "engine.start_failed model=%s attempt=%d cause=%s", model, attempt, cause_and_log(error)
            )
            if not error.transient or attempt == ATTEMPTS:
                raise
            context.view.update(state=f"waiting to load {model} again", trouble=cause_and_log(error))
            await context.stop.sleep(PAUSE.total_seconds())
        else:
            if engine is None:
                return None
            context.watchdog.reset()
            loads = context.view.snapshot.engine_loads + 1
            answers_as = (model, *sorted(engine.names - {model}))
            context.view.update(state="working", names=answers_as, engine_loads=loads, trouble=None)
            limit = courtesy.inflight_limit(engine, context.settings)
            log.info("engine.loaded model=%s max_inflight=%d", model, limit)
            return engine
    return None


def cause_and_log(error: EngineStartFailed) -> str:
    """Return why a load failed and, where the engine wrote one, the path of its log."""
    return error.cause if error.log is None else f"{error.cause} (engine log: {error.log})"


async def unload(context: Context, engine: Engine, model: str) -> None:
    """End an engine, and take its processes out of the ledger."""
    context.view.update(state=f"unloading {model}")
    context.watchdog.suspend(timedelta(minutes=2))
    await engine.close()
    context.watchdog.reset()
    with suppress(StoreReplaced):  # the one that is there now never knew them
        await context.in_store(registry.forget_processes, context.store, worker=context.worker)
    await context.in_files(orphans.forget_tokens, context.settings.state_dir, own=True)
    context.view.update(model=None, names=())
    log.info("engine.unloaded model=%s", model)


async def _load(context: Context, model: str) -> Engine | None:
    """Load once; a stop or pause that is requested meanwhile ends the engine's processes, and there is None.

    What the engine starts carries the token of this load in its title, and is in the ledger when this returns.
    """
    token = await _leave_evidence(context)
    if token is None:
        return None
    engine = None
    try:
        engine = await _load_as(context, model, token)
        if engine is not None:
            await context.in_store(_record, context, token)
        return engine
    except BaseException:
        if engine is not None:  # an engine that no ledger knows must not run
            await engine.close()
            engine = None
        raise
    finally:
        if engine is None:
            orphans.forget_tokens(context.settings.state_dir, own=True)


async def _leave_evidence(context: Context) -> str | None:
    """Return the token of a load, once the state folder can be written to; None when a stop was requested meanwhile."""
    folder = context.settings.state_dir
    while not context.stop.requested:
        try:
            return await context.in_files(evidence.leave, folder, worker=processes.current())
        except OSError as error:
            reason = error.strerror or str(error)
            log.error(
                "engine.state_refused folder=%s error=%s retry_seconds=%.0f",
                folder, reason, PAUSE.total_seconds(),
            )  # fmt: skip
            context.view.update(trouble=f"cannot write to {folder}: {reason}; vbatch keeps trying")
        context.watchdog.reset()
        context.watchdog.suspend(LONGEST_LOAD)
        await context.stop.sleep(PAUSE.total_seconds())
    return None


async def _load_as(context: Context, model: str, token: str) -> Engine | None:
    loading = asyncio.ensure_future(_load_engine(context, model, token))
    stopping = asyncio.ensure_future(context.stop.wait())
    pausing = asyncio.ensure_future(context.pausing.wait())
    recording = asyncio.ensure_future(_record_while_loading(context, token))
    try:
        await asyncio.wait(
            (loading, stopping, pausing, recording),
            timeout=LONGEST_LOAD.total_seconds(),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if loading.done():
            return loading.result()
        loading.cancel()
        await asyncio.wait((loading,))
        if recording.done():  # it ends by a failure alone: an engine that no ledger knows must not run
            recording.result()
        if stopping.done() or pausing.done():
            return None
        raise EngineStartFailed(f"it was not loaded within {LONGEST_LOAD}", transient=True)
    finally:
        stopping.cancel()
        pausing.cancel()
        recording.cancel()
        await asyncio.wait((recording,))


def not_served(model: str, name: str) -> EngineStartFailed:
    """Say that a model was loaded and does not answer at a name which is configured for it."""
    return EngineStartFailed(
        f"{harmless(model)} was loaded and does not answer as {harmless(name)}",
        transient=False,
        blame=Blame.MODEL,
        hint=f'[models."{harmless(model)}"] aliases or adapters, in config.toml',
    )


def refused(name: str, reason: str) -> EngineStartFailed:
    """Say that an adapter could not be loaded."""
    return EngineStartFailed(
        f"the adapter {harmless(name)} cannot be loaded: {one_line(reason, limit=300)}",
        transient=False,
        blame=Blame.MODEL,
        hint="vbatch retry ID -m MODEL, or fix the adapter: it is tried again when its folder changes",
    )


def state_of(context: Context, model: str) -> object:
    """Return a value that changes when the folder or the configuration of a model or an adapter does."""
    return models.state(config.with_present_models(context.settings), model, context.vllm_flags)


def missing(context: Context, model: str) -> EngineStartFailed | None:
    """Return why a model cannot be loaded, where that is known without a try; None where it may be."""
    if not KINDS[context.settings.engine].needs_files:
        return None
    settings = config.with_present_models(context.settings)
    if names.base(settings, model, context.vllm_flags) == model and names.adapter(
        settings, model, context.vllm_flags
    ):
        return EngineStartFailed(
            f"{model} is an adapter by the flags of this worker, which do not name its model",
            transient=False,
            blame=Blame.MODEL,
            hint=f'give it a model: [models."NAME".adapters] {model} = … in config.toml, or --preload MODEL',
        )
    found = models.find(settings, model, context.vllm_flags)
    if found.availability is not Availability.MISSING:
        return _too_few_gpus(context, settings, model)
    return EngineStartFailed(found.reason, transient=False, blame=Blame.MODEL, hint=found.hint(model))


def _too_few_gpus(context: Context, settings: Settings, model: str) -> EngineStartFailed | None:
    if context.gpus is not None:
        try:
            context.gpus.of_engine(cards.engine_flags(settings, model, context.vllm_flags))
        except EngineStartFailed as error:
            return error
    return None


def blocked(context: Context, model: str, error: EngineStartFailed, *, url: str = "") -> BlockedModel:
    """Describe a model that this worker cannot load, or cannot use for an endpoint, for the store."""
    settings, identity = config.with_present_models(context.settings), processes.current()
    parts = (
        identity.host,
        settings.engine,
        str(settings.gpu),
        settings.model_path(model),
        *cards.engine_flags(settings, model, context.vllm_flags),
    )
    return BlockedModel(
        configuration=hashlib.sha256("\0".join(parts).encode(errors="replace")).hexdigest()[:16],
        model=model,
        url=url,
        host=identity.host,
        reason=cause_and_log(error),
        hint=error.hint,
        since=datetime.now(UTC),
    )


async def _load_engine(context: Context, model: str, token: str) -> Engine:
    settings = config.with_present_models(context.settings)
    configured = settings.models.get(model) or ModelSettings()
    args = courtesy.flags(cards.engine_flags(settings, model, context.vllm_flags), chat=settings.chat)
    if context.gpus is not None:
        numbers = [card.number for card in context.gpus.of_engine(args)]
        await context.in_files(
            memory_check.require, context.store, state_dir=settings.state_dir, numbers=numbers, args=args
        )
    engine = await KINDS[settings.engine].load(
        Load(
            model=model,
            path=settings.model_path(model),
            aliases=configured.aliases,
            adapters=configured.adapters,
            args=args,
            shared_args=(*settings.defaults.args, *context.vllm_flags),
            visible_gpus=context.gpus.variable if context.gpus is not None else None,
            title_prefix=evidence.title_prefix(token),
            log_dir=settings.state_dir / "logs",
            settings=settings,
        )
    )
    return Hearing(
        engine,
        Limits(
            size=settings.audio_limit << 20,
            size_name="audio_limit",
            seconds=settings.audio_timeout.total_seconds(),
            allows=None if settings.audio_private else "audio_private = true",
        ),
    )


async def _record_while_loading(context: Context, token: str) -> None:
    """Write the processes of an engine into the ledger as they appear: a load may take minutes, and be killed."""
    known: list[int] = []
    while True:
        await asyncio.sleep(1)
        if (pids := _carrying(token)) != known:
            known = pids
            await context.in_store(_record, context, token)


def _carrying(token: str) -> list[int]:
    """Return the processes below this one that the load of this token has started, and no others.

    A script that becomes the worker by ``exec`` leaves it its own children, a tunnel say: they carry no token.
    """
    prefix = evidence.title_prefix(token)
    below = [process.pid for process in descendants.family([os.getpid()])]
    return [pid for pid in below if pid != os.getpid() and processes.title(pid).startswith(prefix)]


def _record(context: Context, token: str) -> None:
    rows = [
        EngineProcess(
            worker=context.worker,
            identity=identity,
            title=processes.title(pid),
        )
        for pid in _carrying(token)
        if (identity := processes.identify(pid)) is not None
    ]
    registry.record_processes(context.store, worker=context.worker, processes=rows)
    if rows:
        log.info("engine.processes pids=%s", ",".join(str(row.identity.pid) for row in rows))
