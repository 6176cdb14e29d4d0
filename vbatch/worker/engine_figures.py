"""Watch the engine's own figures, and advise in one sentence where they say that it could do more."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta

from vbatch.engine import figures
from vbatch.engine.figures import EngineFigures
from vbatch.text import count
from vbatch.worker.progress import Snapshot, View

log = logging.getLogger(__name__)

PAUSE = timedelta(seconds=2)  # between two looks
WINDOW = 30  # looks: what is advised has held for a minute
PREEMPTED = 10  # requests in a window, from which on it is worth a sentence
UNUSED_CACHE = 0.5  # of the KV cache: with less in use, more sequences would fit


@dataclass(slots=True)
class Adviser:
    """Looks at the last minute of one engine."""

    _looks: deque[EngineFigures] = field(default_factory=lambda: deque(maxlen=WINDOW))

    def advise(self, now: EngineFigures, *, on_gpu: bool) -> str | None:
        """Take one more look, and return what to change; None where nothing need be."""
        if self._looks and now.prompt_tokens < self._looks[-1].prompt_tokens:  # another engine
            self._looks.clear()
        self._looks.append(now)
        if len(self._looks) < WINDOW:
            return None
        preempted = now.preemptions - self._looks[0].preemptions
        if preempted >= PREEMPTED:
            return (
                f"the engine computes {count(preempted, 'request')} a minute again because its KV cache is full; "
                "--kv-cache-dtype fp8, a shorter --max-model-len or fewer --max-num-seqs avoids that"
            )
        # Some always wait, so that the engine never lacks work. On a CPU a larger batch is no faster.
        fullest = max(look.cache for look in self._looks)
        if on_gpu and fullest < UNUSED_CACHE and all(look.waiting for look in self._looks):
            return (
                f"requests wait while {1 - fullest:.0%} of the KV cache is unused; "
                f"--max-num-seqs above {now.running} lets the engine run more at once"
            )
        return None


def look(view: View, adviser: Adviser) -> None:
    """Show the figures of the engine that works now; those of the last one stay until another one works."""
    snapshot = view.snapshot
    if snapshot.model is None or snapshot.state != "working":
        if snapshot.advice is not None:
            view.update(advice=None)
        return
    now = figures.read()
    advice = None if now is None else adviser.advise(now, on_gpu=bool(snapshot.gpus_now))
    view.update(engine=now, advice=advice)


@contextmanager
def watched(view: View) -> Iterator[None]:
    """Look every few seconds, in a thread, until the block is left."""
    ended = threading.Event()
    adviser = Adviser()

    def run() -> None:
        while not ended.wait(PAUSE.total_seconds()):
            try:
                look(view, adviser)
            except Exception:  # of a metric that another version of vLLM has changed: the work continues
                log.debug("engine.figures_unreadable", exc_info=True)
                return

    threading.Thread(target=run, name="engine-figures", daemon=True).start()
    try:
        yield
    finally:
        ended.set()


def report(snapshot: Snapshot) -> None:
    """Log the engine's figures, where it has any: for the log at the end of a batch."""
    now = snapshot.engine
    if snapshot.model is not None and now is not None and now.hit_rate is not None:
        log.info(
            "engine.figures model=%s prefix_hits=%.0f preemptions=%d",
            snapshot.model, 100 * now.hit_rate, now.preemptions,
        )  # fmt: skip
