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
from vbatch.errors import ConfigError, EngineUnavailable, Interrupted, StoreReplaced
from vbatch.gpu_memory import cards
from vbatch.gpu_memory import locks as gpu_locks
from vbatch.gpu_memory.cards import Assigned
from vbatch.recovery import dead_workers
from vbatch.store import Store, registry
from vbatch.worker import chat_socket, engine_figures
from vbatch.worker.context import Context
from vbatch.worker.figures import exposed
from vbatch.worker.heartbeat import Heartbeat, Watchdog
from vbatch.worker.loop import WorkLoop
from vbatch.worker.notifier import notifying
from vbatch.worker.progress import Snapshot, View
from vbatch.worker.registration import Registration
from vbatch.worker.several import with_parent
from vbatch.worker.stop import AT_REST, Stop, on_signals
from vbatch.worker.systemd import announced, notify

__all__ = ["Snapshot", "Stop", "View", "run"]

log = logging.getLogger(__name__)

BETWEEN_STORES = 1.0  # seconds: a restore may not be over


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
    with on_signals(stop), with_parent(stop), announcing:
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
    kind.check(settings)
    if settings.chat:
        chat_socket.require()
    if settings.preload is not None:
        kind.require(settings.preload)
    watchdog = Watchdog()
    with ExitStack() as stack:
        stack.callback(stop.store.set)  # lets threads end that still wait for the database
        stack.enter_context(exposed(settings, view, watchdog, _folders(store, settings)))
        stack.enter_context(engine_figures.watched(view))
        gpus = None
        while True:
            store.prepare()
            watchdog.reset()
            if gpus is None and kind.needs_gpu and installed.has_nvml():
                gpus = cards.assign(settings, gpu.probe(), vllm_flags)
                stack.enter_context(gpu_locks.hold(settings.state_dir, gpus.held))
                stack.enter_context(_gpu_shown(gpus, view))
            uuids = gpus.uuids if gpus is not None else []
            registration = Registration(store, engine=settings.engine, gpus=uuids)
            context = Context(
                store=store,
                settings=settings,
                drain=drain,
                vllm_flags=vllm_flags,
                gpus=gpus,
                registration=registration,
                view=view,
                stop=stop,
                watchdog=watchdog,
            )
            try:
                _work_on(context)
                return
            except StoreReplaced as error:
                log.warning("store.replaced reason=%s", error)
                context.finish()
            if stop.requested:
                return
            stop.store.wait(BETWEEN_STORES)


def _work_on(context: Context) -> None:
    """Work on one store. Raises StoreReplaced where it was replaced: what was leased of it is given up then."""
    store, settings, stop, view = context.store, context.settings, context.stop, context.view
    registration = context.registration
    worker = registration.worker
    with ExitStack() as stack:
        heartbeat = Heartbeat(
            context.watchdog, lambda: registration.report(view.snapshot), lease=settings.lease
        )
        stack.callback(context.close)
        stack.enter_context(notifying(store, settings))
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
            with asyncio.Runner(loop_factory=KINDS[settings.engine].event_loop) as runner:
                runner.run(_work(context))
        except (EngineUnavailable, ConfigError):
            stop.abandon_store_after(AT_REST)
            with suppress(Interrupted, StoreReplaced):
                registry.stop(store, worker=worker)
            raise
        finally:
            stop.may_abandon_store = True
        registry.stop(store, worker=worker)
        log.info("worker.stopped worker=%s", worker)


@contextmanager
def _gpu_shown(gpus: Assigned, view: View) -> Iterator[None]:
    """Show the state of the worker's GPUs beside its own."""
    with gpu.watched(gpus.numbers, lambda cards: view.update(gpus=cards, gpus_seen_at=time.monotonic())):
        yield


def _folders(store: Store, settings: Settings) -> dict[str, Path]:
    """Name the folders that must not fill: of a database on this machine, of the models, of the logs."""
    of_store = {"store": store.file.parent} if store.file is not None else {}
    return {**of_store, "cache": settings.cache_dir, "state": settings.state_dir}


async def _work(context: Context) -> None:
    context.stop.attach(asyncio.get_running_loop())
    context.watchdog.attach()
    if KINDS[context.settings.engine].remote:
        from vbatch.worker.remote import RemoteLoop  # needs the HTTP client, an extra

        await RemoteLoop(context).run()
    else:
        await WorkLoop(context).run()
