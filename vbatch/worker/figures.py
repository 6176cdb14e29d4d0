"""The worker's figures for Prometheus, gathered from what it shows of itself when somebody asks."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vbatch.worker.options import WorkerOptions
from vbatch.worker.progress import View
from vbatch.worker.pulse import Pulse

log = logging.getLogger(__name__)


@contextmanager
def exposed(options: WorkerOptions, view: View, pulse: Pulse, folders: Mapping[str, Path]) -> Iterator[None]:
    """Serve the figures until the block is left, where a port is configured.

    ``folders`` are watched for their free space. A port that cannot be had costs the metrics, not the work.
    """
    if options.metrics_port is None:
        yield
        return
    from vbatch.worker.metrics import Exposition, Figures

    began = time.monotonic()

    def figures() -> Figures:
        now = view.snapshot
        return Figures(
            healthy=pulse.alive or now.state == "starting",
            state=now.state,
            model=now.model,
            queue_unfinished=now.total - now.completed - now.failed,
            queue_finished=now.completed + now.failed,
            running=now.running,
            completed=now.saved - now.saved_failed,
            failed=now.saved_failed,
            prompt_tokens=now.prompt_tokens,
            completion_tokens=now.completion_tokens,
            engine_loads=now.engine_loads,
            engine_deaths=now.engine_deaths,
            outages=now.store_outages,
            outage_seconds=now.store_outage_seconds,
            progress_age_seconds=time.monotonic() - (now.saved_at or began),
            gpu_memory_used=now.gpu_now.used if now.gpu_now is not None else None,
            gpu_memory_total=now.gpu_now.total if now.gpu_now is not None else None,
            disk_free={
                place: free for place, folder in folders.items() if (free := _free(folder)) is not None
            },
        )

    try:
        exposition = Exposition(options.metrics_port + (options.gpu or 0), figures)
    except (OSError, ValueError, OverflowError) as error:  # taken, no port, no folder of vLLM's metrics
        log.warning("metrics.unavailable port=%d reason=%s", options.metrics_port, error)
        yield
        return
    with exposition:
        yield


def _free(folder: Path) -> int | None:
    """Return the bytes that are free where this folder is, or will be."""
    for place in (folder, *folder.parents):
        try:
            return shutil.disk_usage(place).free
        except OSError:
            continue
    return None
