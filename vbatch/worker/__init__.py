"""The worker: takes chunks of requests from the store, has an engine answer them, saves what it answers.

``run`` is its composition root. The order matters (it is the lesson of the incident that vbatch ends):
the store first, then what dead workers left, then the engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vbatch import gpu
from vbatch.engine import installed, vllm
from vbatch.engine.kinds import KINDS
from vbatch.errors import ConfigError, EngineUnavailable, Interrupted
from vbatch.gpu_memory import locks as gpu_locks
from vbatch.recovery import dead_workers
from vbatch.store import Store, registry
from vbatch.system import processes
from vbatch.worker.announce import announced
from vbatch.worker.context import Context
from vbatch.worker.figures import exposed
from vbatch.worker.loop import WorkLoop
from vbatch.worker.notify import notify
from vbatch.worker.options import ModelOptions, WorkerOptions
from vbatch.worker.progress import Snapshot, View
from vbatch.worker.pulse import Heartbeat, Pulse
from vbatch.worker.stop import AT_REST, Stop, on_signals

__all__ = ["ModelOptions", "Snapshot", "Stop", "View", "WorkerOptions", "run"]

log = logging.getLogger(__name__)


def run(store: Store, options: WorkerOptions, *, view: View, stop: Stop) -> None:
    """Work until a signal or, with ``drain``, until nothing is left that the engine serves.

    Returns after a clean stop. ``store`` must have been made with ``stop.store`` as its stop event, so that a signal
    ends waiting for the database. Raises StoreMisconfigured, ConfigError and EngineUnavailable, which only a person
    can fix.
    """
    said = announced(view, stopping=lambda: stop.requested, drain_limit=options.drain_limit)
    with on_signals(stop), said:
        try:
            _run(store, options, view, stop)
        except Interrupted:
            log.info("worker.interrupted")
        finally:
            notify("STOPPING=1")


def _run(store: Store, options: WorkerOptions, view: View, stop: Stop) -> None:
    kind = KINDS[options.engine]
    if options.preload is not None:
        kind.require(options.preload)
    pulse = Pulse()
    with ExitStack() as stack:
        stack.callback(stop.store.set)  # lets threads end that still wait for the database
        stack.enter_context(exposed(options, view, pulse, _folders(store, options)))
        store.prepare()
        pulse.turn()
        if kind.needs_gpu:
            stack.enter_context(gpu_locks.hold(options.state_dir, options.gpu))
            stack.enter_context(_gpu_shown(options, view))
        worker = registry.register(store, identity=processes.current(), engine=options.engine, gpu_uuid=None)
        heartbeat = Heartbeat(
            pulse,
            lambda: _beat(store, worker, view.snapshot),
            lease=options.lease,
        )
        context = Context(store=store, options=options, worker=worker, view=view, stop=stop, pulse=pulse)
        stack.callback(context.close)
        heartbeat.start()
        stack.callback(heartbeat.stop)
        dead_workers.recover(store, dead_workers.Watch(options.lease), me=worker, state_dir=options.state_dir)
        dead_workers.sweep(store)
        stop.may_abandon_store = False
        stop.on_second = vllm.kill_children
        view.update(worker=worker, state="ready")
        log.info("worker.ready worker=%s engine=%s", worker, options.engine)
        notify("READY=1", "STATUS=ready")
        try:
            asyncio.run(_work(context))
        except (EngineUnavailable, ConfigError):
            stop.abandon_store_after(AT_REST)
            with suppress(Interrupted):
                registry.stop(store, worker=worker)
            raise
        finally:
            stop.may_abandon_store = True
        registry.stop(store, worker=worker)
        log.info("worker.stopped worker=%s", worker)


def _beat(store: Store, worker: str, now: Snapshot) -> None:
    pace = now.requests_per_second if now.state == "working" else None
    registry.beat(store, worker=worker, model=now.model, note=now.note, requests_per_second=pace)


@contextmanager
def _gpu_shown(options: WorkerOptions, view: View) -> Iterator[None]:
    """Show the GPU's state beside the worker's, where vLLM computes on one."""
    if not installed.computes_on_gpu():
        yield
        return
    with gpu.watched(
        gpu_locks.index(options.gpu), lambda card: view.update(gpu=card, gpu_seen_at=time.monotonic())
    ):
        yield


def _folders(store: Store, options: WorkerOptions) -> dict[str, Path]:
    """Name the folders that must not fill: of a database on this machine, of the models, of the logs."""
    of_store = {"store": store.file.parent} if store.file is not None else {}
    return {**of_store, "cache": options.cache_dir, "state": options.state_dir}


async def _work(context: Context) -> None:
    context.stop.attach(asyncio.get_running_loop())
    context.pulse.begin()
    await WorkLoop(context).run()
