"""The worker: takes chunks of requests from the store, has an engine answer them, saves what it answers.

``run`` is its composition root. The order matters (it is the lesson of the incident that vbatch ends):
the store first, then what dead workers left, then the engine.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from vbatch import gpu
from vbatch.config import Settings
from vbatch.engine import installed, vllm
from vbatch.engine.kinds import KINDS
from vbatch.errors import ConfigError, EngineUnavailable, Interrupted
from vbatch.gpu_memory import locks as gpu_locks
from vbatch.recovery import dead_workers
from vbatch.store import Store, registry
from vbatch.system import processes
from vbatch.worker.context import Context
from vbatch.worker.figures import exposed
from vbatch.worker.heartbeat import Heartbeat, Watchdog
from vbatch.worker.loop import WorkLoop
from vbatch.worker.progress import Snapshot, View
from vbatch.worker.stop import AT_REST, Stop, on_signals
from vbatch.worker.systemd import announced, notify

__all__ = ["Snapshot", "Stop", "View", "run"]

log = logging.getLogger(__name__)


def run(
    store: Store,
    settings: Settings,
    *,
    view: View,
    stop: Stop,
    drain: bool = False,
    vllm_flags: Sequence[str] = (),
) -> None:
    """Work until a signal or, with ``drain``, until nothing is left that the engine serves.

    Returns after a clean stop. ``vllm_flags`` apply to every model, after those of the settings. ``store`` must have
    been made with ``stop.store`` as its stop event, so that a signal ends waiting for the database. Raises
    StoreMisconfigured, ConfigError and EngineUnavailable, which only a person can fix.
    """
    announcing = announced(view, stopping=lambda: stop.requested, drain_limit=settings.drain_limit)
    with on_signals(stop), announcing:
        try:
            _run(store, settings, view, stop, drain=drain, vllm_flags=tuple(vllm_flags))
        except Interrupted:
            log.info("worker.interrupted")
        finally:
            notify("STOPPING=1")


def _run(
    store: Store, settings: Settings, view: View, stop: Stop, *, drain: bool, vllm_flags: tuple[str, ...]
) -> None:
    kind = KINDS[settings.engine]
    if settings.preload is not None:
        kind.require(settings.preload)
    watchdog = Watchdog()
    with ExitStack() as stack:
        stack.callback(stop.store.set)  # lets threads end that still wait for the database
        stack.enter_context(exposed(settings, view, watchdog, _folders(store, settings)))
        store.prepare()
        watchdog.reset()
        gpus: list[str] = []
        if kind.needs_gpu:
            stack.enter_context(gpu_locks.hold(settings.state_dir, settings.gpu))
            stack.enter_context(_gpu_shown(settings, view))
            gpus = _gpus(settings)
        worker = registry.register(store, identity=processes.current(), engine=settings.engine, gpus=gpus)
        heartbeat = Heartbeat(
            watchdog, lambda: _heartbeat(store, worker, view.snapshot), lease=settings.lease
        )
        context = Context(
            store=store,
            settings=settings,
            drain=drain,
            vllm_flags=vllm_flags,
            worker=worker,
            view=view,
            stop=stop,
            watchdog=watchdog,
        )
        stack.callback(context.close)
        heartbeat.start()
        stack.callback(heartbeat.stop)
        dead_workers.recover(
            store, dead_workers.Watch(settings.lease), me=worker, state_dir=settings.state_dir
        )
        dead_workers.sweep(store)
        stop.may_abandon_store = False
        stop.on_second = vllm.kill_children
        view.update(worker=worker, state="ready")
        log.info("worker.ready worker=%s engine=%s", worker, settings.engine)
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


def _heartbeat(store: Store, worker: str, now: Snapshot) -> None:
    pace = now.requests_per_second if now.state == "working" else None
    models = [now.model] if now.model else []
    registry.heartbeat(store, worker=worker, models=models, note=now.note, requests_per_second=pace)


def _gpus(settings: Settings) -> list[str]:
    """Return the UUID of the GPU that vLLM computes on; nothing where there is none, or the driver does not say."""
    if not installed.computes_on_gpu():
        return []
    report = gpu.probe()
    number = gpu_locks.index(settings.gpu, report)
    return [card.uuid for card in report.gpus if card.index == number and card.uuid]


@contextmanager
def _gpu_shown(settings: Settings, view: View) -> Iterator[None]:
    """Show the GPU's state beside the worker's, where vLLM computes on one."""
    if not installed.computes_on_gpu():
        yield
        return
    with gpu.watched(
        gpu_locks.index(settings.gpu), lambda card: view.update(gpu=card, gpu_seen_at=time.monotonic())
    ):
        yield


def _folders(store: Store, settings: Settings) -> dict[str, Path]:
    """Name the folders that must not fill: of a database on this machine, of the models, of the logs."""
    of_store = {"store": store.file.parent} if store.file is not None else {}
    return {**of_store, "cache": settings.cache_dir, "state": settings.state_dir}


async def _work(context: Context) -> None:
    context.stop.attach(asyncio.get_running_loop())
    context.watchdog.attach()
    await WorkLoop(context).run()
