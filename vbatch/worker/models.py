"""Load the engine for a model: where its files are, with which flags, and how often to try."""

from __future__ import annotations

import asyncio
import logging
import os
from datetime import timedelta

from vbatch.engine import Engine, EngineStartFailed
from vbatch.engine.kinds import KINDS, Load
from vbatch.gpu_memory import check as memory_check
from vbatch.recovery import evidence, orphans
from vbatch.store import registry
from vbatch.store.records import EngineProcess
from vbatch.system import descendants, processes
from vbatch.worker.context import Context

log = logging.getLogger(__name__)

ATTEMPTS = 3
PAUSE = timedelta(seconds=10)
LONGEST_LOAD = timedelta(hours=2)  # a first load may download and compile; what takes longer hangs


async def load(context: Context, model: str) -> Engine | None:
    """Load a model's engine, and write its processes into the ledger. None when a stop was requested meanwhile.

    Raises EngineStartFailed after the last attempt, or at once where trying again cannot help.
    """
    for attempt in range(1, ATTEMPTS + 1):
        if context.stop.requested:
            return None
        context.view.update(state=f"loading {model}", model=model)
        context.pulse.excuse(LONGEST_LOAD)
        log.info("engine.loading model=%s attempt=%d", model, attempt)
        try:
            engine = await _load(context, model)
        except EngineStartFailed as error:
            log.warning("engine.start_failed model=%s attempt=%d cause=%s", model, attempt, error.cause)
            if not error.transient or attempt == ATTEMPTS:
                raise
            context.view.update(state=f"waiting to load {model} again", trouble=error.cause)
            await context.stop.sleep(PAUSE.total_seconds())
        else:
            if engine is None:
                return None
            context.pulse.turn()
            loads = context.view.snapshot.engine_loads + 1
            context.view.update(state="working", engine_loads=loads, trouble=None)
            log.info("engine.loaded model=%s max_inflight=%d", model, engine.max_inflight)
            return engine
    return None


async def unload(context: Context, engine: Engine, model: str) -> None:
    """End an engine, and take its processes out of the ledger."""
    context.view.update(state=f"unloading {model}")
    context.pulse.excuse(timedelta(minutes=2))
    await engine.close()
    context.pulse.turn()
    await context.in_store(registry.forget_processes, context.store, worker=context.worker)
    await context.in_files(orphans.forget_tokens, context.options.state_dir, own=True)
    context.view.update(model=None)
    log.info("engine.unloaded model=%s", model)


async def _load(context: Context, model: str) -> Engine | None:
    """Load once; a stop that is requested meanwhile ends the engine's processes, and there is None.

    What the engine starts carries the token of this load in its title, and is in the ledger when this returns.
    """
    token = evidence.leave(context.options.state_dir, worker=processes.current())
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
            orphans.forget_tokens(context.options.state_dir, own=True)


async def _load_as(context: Context, model: str, token: str) -> Engine | None:
    loading = asyncio.ensure_future(_home(context, model, token))
    stopping = asyncio.ensure_future(context.stop.wait())
    recording = asyncio.ensure_future(_record_while_loading(context, token))
    try:
        await asyncio.wait(
            (loading, stopping, recording),
            timeout=LONGEST_LOAD.total_seconds(),
            return_when=asyncio.FIRST_COMPLETED,
        )
        if loading.done():
            return loading.result()
        loading.cancel()
        await asyncio.wait((loading,))
        if recording.done():  # it ends by a failure alone: an engine that no ledger knows must not run
            recording.result()
        if stopping.done():
            return None
        raise EngineStartFailed(f"it was not loaded within {LONGEST_LOAD}", transient=True)
    finally:
        stopping.cancel()
        recording.cancel()
        await asyncio.wait((recording,))


async def _home(context: Context, model: str, token: str) -> Engine:
    options = context.options
    kind = KINDS[options.engine]
    args = options.engine_args(model)
    if kind.needs_gpu:
        await context.in_files(
            memory_check.require, context.store, state_dir=options.state_dir, gpu=options.gpu, args=args
        )
    return await kind.load(
        Load(
            model=model,
            path=options.model_path(model),
            args=args,
            shared_args=options.shared_args,
            gpu=options.gpu,
            title_prefix=evidence.title_prefix(token),
            log_dir=options.state_dir / "logs",
            echo_latency=options.echo_latency,
        )
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
            cgroup=processes.cgroup(pid),
        )
        for pid in _carrying(token)
        if (identity := processes.identify(pid)) is not None
    ]
    registry.record_processes(context.store, worker=context.worker, processes=rows)
    if rows:
        log.info("engine.processes pids=%s", ",".join(str(row.identity.pid) for row in rows))
