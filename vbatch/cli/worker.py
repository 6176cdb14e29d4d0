"""``run-worker``: the worker runs, a live view shows it."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass

from vbatch import batches, logs, worker
from vbatch.batches import LeftAlone
from vbatch.cli import screens
from vbatch.cli.arguments import check_vllm_flags
from vbatch.cli.live import Screen, shown
from vbatch.cli.output import Output, continue_without_terminal
from vbatch.cli.startup import settings as load_settings
from vbatch.config import Settings
from vbatch.text import count, duration
from vbatch.worker import Stop, View


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a worker ended: how many results it saved, in how many seconds, and whether it was asked to stop.

    ``left_alone`` waits for a worker with another engine.
    """

    saved: int
    seconds: float
    stopped: bool
    left_alone: Sequence[LeftAlone]


def run_worker(
    vllm_flags: Sequence[str],
    *,
    engine: str | None,
    gpu: int | None,
    drain: bool,
    preload: str | None,
    max_inflight: int | None,
) -> None:
    """Work until a signal or, with ``drain``, until nothing is left that the engine serves."""
    check_vllm_flags(vllm_flags)
    continue_without_terminal()
    output = Output()
    settings = load_settings(output, engine=engine, gpu=gpu, preload=preload, max_inflight=max_inflight)
    ended = work(output, settings, drain=drain, vllm_flags=vllm_flags)
    if output.stderr.is_terminal:
        empty = "nothing is left for this worker" if ended.left_alone else "the queue is empty"
        why = "stopped" if ended.stopped else empty
        output.note(f"{why}: {count(ended.saved, 'result')} saved in {duration(ended.seconds)}")
        for left in ended.left_alone:
            output.note(screens.left_alone(left))


def work(output: Output, settings: Settings, *, drain: bool, vllm_flags: Sequence[str] = ()) -> Ended:
    """Run a worker: under a live view on a terminal, logging events elsewhere."""
    stop, view = Stop(), View()
    screen = Screen(lambda: view.snapshot, stopping=lambda: stop.requested)
    started = time.monotonic()
    live = sys.stderr.isatty()
    if not live:
        logs.configure(settings.log_level)
    with (
        batches.open_for_worker(settings.store_url, stop=stop.store, on_wait=view.wait_for_store) as store,
        shown(screen, output.stderr, level=settings.log_level) if live else nullcontext(),
    ):
        worker.run(store, settings, view=view, stop=stop, drain=drain, vllm_flags=vllm_flags)
    return Ended(
        saved=view.snapshot.saved,
        seconds=time.monotonic() - started,
        stopped=stop.requested,
        left_alone=[batches.left_alone(backlog) for backlog in view.snapshot.left_alone],
    )
