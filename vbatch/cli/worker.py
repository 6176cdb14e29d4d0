"""``run-worker``: settings become options, the worker runs, a live view shows it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from vbatch import logs, worker
from vbatch.cli import words
from vbatch.cli.arguments import check_vllm_flags
from vbatch.cli.live import Screen, shown
from vbatch.cli.opening import settings as load_settings
from vbatch.cli.output import Output, outlive_the_terminal
from vbatch.store import WORKER_PATIENCE, Store
from vbatch.worker import Stop, View, WorkerOptions


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a worker ended: how many results it saved, in how many seconds, and whether it was told to stop."""

    saved: int
    seconds: float
    stopped: bool


def run_worker(
    vllm_flags: Sequence[str],
    *,
    engine: str | None,
    gpu: int | None,
    drain: bool,
    preload: str | None,
    max_inflight: int | None,
) -> None:
    """Work until a signal or, with ``drain``, until the queue is empty."""
    check_vllm_flags(vllm_flags)
    outlive_the_terminal()
    output = Output()
    settings = load_settings(output, engine=engine, gpu=gpu, preload=preload, max_inflight=max_inflight)
    ended = work(
        output,
        settings.store_url,
        WorkerOptions.of(settings, drain=drain, extra_args=vllm_flags),
        log_level=settings.log_level,
    )
    if output.stderr.is_terminal:
        why = "stopped" if ended.stopped else "the queue is empty"
        output.note(f"{why}: {words.count(ended.saved, 'result')} saved in {words.duration(ended.seconds)}")


def work(output: Output, url: str, options: WorkerOptions, *, log_level: str) -> Ended:
    """Run a worker on the store at ``url``: under a live view on a terminal, logging events elsewhere."""
    stop, view = Stop(), View()
    store = Store(
        url,
        patience=WORKER_PATIENCE,
        stop=stop.store,
        on_wait=view.wait_for_store,
    )
    screen = Screen(lambda: view.snapshot, stopping=lambda: stop.requested)
    started = time.monotonic()
    live = sys.stderr.isatty()
    if not live:
        logs.configure(log_level)
    try:
        with shown(screen, output.stderr, level=log_level) if live else nullcontext():
            worker.run(store, options, view=view, stop=stop)
    finally:
        store.close()
    return Ended(saved=view.snapshot.saved, seconds=time.monotonic() - started, stopped=stop.requested)
