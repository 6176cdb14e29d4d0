"""The worker's figures for Prometheus, gathered at each scrape from what it shows of itself."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from vbatch.config import Settings, gpu_setting
from vbatch.worker.heartbeat import Watchdog
from vbatch.worker.progress import View

log = logging.getLogger(__name__)


@contextmanager
def exposed(
    settings: Settings, view: View, watchdog: Watchdog, folders: Mapping[str, Path]
) -> Iterator[None]:
    """Serve the figures until the block is left, where a port is configured.

    ``folders`` are watched for their free space. A port that cannot be used costs the metrics, not the work.
    """
    if settings.metrics_port is None:
        yield
        return
    from vbatch.worker.metrics import Exposition, Figures

    began = time.monotonic()

    def figures() -> Figures:
        now = view.snapshot
        return Figures(
            healthy=watchdog.alive or now.state == "starting",
            paused=now.paused is not None,
            state=now.state,
            model=now.model,
            queue_unfinished=now.total - now.completed - now.failed,
            queue_finished=now.completed + now.failed,
            running=now.running,
            chats=now.chats,
            completed=now.saved - now.saved_failed,
            failed=now.saved_failed,
            cut_off=now.cut_off,
            empty=now.empty,
            blocked=len(now.blocked),
            prompt_tokens=now.prompt_tokens,
            completion_tokens=now.completion_tokens,
            engine_loads=now.engine_loads,
            engine_crashes=now.engine_crashes,
            outages=now.store_outages,
            outage_seconds=now.store_outage_seconds,
            progress_age_seconds=time.monotonic() - (now.saved_at or began),
            gpu_memory={
                (str(card.index), kind): memory
                for card in now.gpus_now
                if card.memory_known
                for kind, memory in (("used", card.used), ("total", card.total))
            },
            disk_free={
                place: free for place, folder in folders.items() if (free := _free(folder)) is not None
            },
        )

    try:
        exposition = Exposition(settings.metrics_port + gpu_setting.first(settings.gpu), figures)
    except (OSError, ValueError, OverflowError) as error:  # taken, no port, no folder of vLLM's metrics
        log.warning("metrics.unavailable port=%d reason=%s", settings.metrics_port, error)
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
