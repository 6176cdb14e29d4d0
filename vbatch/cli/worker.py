"""``run-worker``: the worker runs, a live view shows it."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from datetime import timedelta

from vbatch import batches, logs, worker
from vbatch.batches import LeftAlone
from vbatch.cli import screens
from vbatch.cli.arguments import check_vllm_flags, chosen_endpoints
from vbatch.cli.live import Screen, shown
from vbatch.cli.output import Output, continue_without_terminal
from vbatch.cli.several import run_workers
from vbatch.cli.startup import settings as load_settings
from vbatch.config import Settings, gpu_setting
from vbatch.text import count, duration
from vbatch.worker import Stop, View, runtime, several


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a worker ended: how many results it saved, in how many seconds, and whether it was asked to stop.

    ``left_alone`` waits for a worker with another engine; ``paused`` is why one that drains ended early.
    """

    saved: int
    seconds: float
    stopped: bool
    left_alone: Sequence[LeftAlone]
    paused: str | None


def run_worker(
    vllm_flags: Sequence[str],
    *,
    engine: str | None,
    urls: Sequence[str],
    gpu: str | None,
    drain: bool,
    preload: str | None,
    max_inflight: int | None,
    max_runtime: timedelta | None,
) -> int:
    """Work until a signal, until a time is over or, with ``drain``, until nothing is left that the engine serves."""
    check_vllm_flags(vllm_flags)
    continue_without_terminal()
    output = Output()
    engine, endpoints = chosen_endpoints(engine, urls)
    settings = load_settings(
        output, engine=engine, endpoints=endpoints, gpu=gpu, preload=preload, max_inflight=max_inflight
    )
    several.keep_to_share(settings)
    numbers, with_display = several.choose(settings, vllm_flags)
    for card in with_display:
        output.note(f"GPU {card.index} drives a display and is left out; --gpu {card.index} uses it")
    if len(numbers) > 1:
        seconds = None if max_runtime is None else f"{int(max_runtime.total_seconds())}s"
        given = (
            ("--engine", engine),
            ("--preload", preload),
            ("--max-inflight", max_inflight),
            ("--max-runtime", seconds),
        )
        options = [str(word) for pair in given if pair[1] is not None for word in pair]
        options += ["--drain"] if drain else []
        options += ["--", *vllm_flags] if vllm_flags else []
        stop = Stop()
        stop.on_exit = _last_line if sys.stderr.isatty() else stop.on_exit
        return run_workers(output, settings, numbers, options, stop)
    if settings.gpu == gpu_setting.ALL:
        settings = settings.model_copy(update={"gpu": str(numbers[0]) if numbers else None})
    ended = work(output, settings, drain=drain, vllm_flags=vllm_flags, max_runtime=max_runtime)
    if output.stderr.is_terminal:
        empty = "nothing is left for this worker" if ended.left_alone else "the queue is empty"
        why = "stopped" if ended.stopped else ended.paused or empty
        output.note(f"{why}: {count(ended.saved, 'result')} saved in {duration(ended.seconds)}")
        for left in ended.left_alone:
            output.note(screens.left_alone(left))
    return 0


def work(
    output: Output,
    settings: Settings,
    *,
    drain: bool,
    vllm_flags: Sequence[str] = (),
    max_runtime: timedelta | None = None,
) -> Ended:
    """Run a worker: under a live view on a terminal, logging events elsewhere."""
    stop, view = Stop(), View()
    if max_runtime is not None:
        lasts = runtime.end_within(stop, max_runtime, drain_limit=settings.drain_limit)
        settings = settings.model_copy(update={"drain_limit": lasts})
    screen = Screen(lambda: view.snapshot, stopping=lambda: stop.requested)
    started = time.monotonic()
    live = sys.stderr.isatty()
    if live:
        stop.on_exit = _last_line
    else:
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
        paused=view.snapshot.paused,
        left_alone=[batches.left_alone(backlog) for backlog in view.snapshot.left_alone],
    )


def _last_line() -> None:
    """Leave a clean prompt below the live view. Called by a signal handler: nothing of Rich is safe there."""
    with suppress(OSError):
        os.write(
            2,
            b"\r\x1b[J\x1b[?25h\nstopped at once; what is saved stays, the rest runs with the next worker\n",
        )
