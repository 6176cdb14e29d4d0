"""How fast batches were in the last hours: what the server saw of their progress, in memory, bounded."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from itertools import pairwise
from typing import NamedTuple

from vbatch import batches
from vbatch.batches import Batch, Store
from vbatch.errors import NoSuchBatch

EVERY = timedelta(seconds=15)
KEPT = timedelta(hours=4)
MOST = 64  # batches; the one that was seen last the longest ago goes
_POINTS = 96  # of a chart; neighbours are put together
ALL = "all"  # in place of a batch: all that run, together


class _Sample(NamedTuple):
    at: float
    done: int
    tokens: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The pace between two looks; ``ago`` is how long the second one is past, in seconds."""

    ago: float
    requests: float
    tokens: float


class Samples:
    """The looks. One thread takes them, others read."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._of: dict[str, deque[_Sample]] = {}
        self._before: dict[str, Batch] = {}
        self._sum = (0, 0)

    def look(self, store: Store) -> None:
        """Take a look at the batches that run, and once more at those that have just ended."""
        running = {
            batch.id: batch for batch in batches.list_batches(store, limit=MOST, status="in_progress").batches
        }
        with self._lock:
            gone = [name for name in self._before if name not in running]
        self.add([*running.values(), *_still_there(store, gone)])

    def add(self, found: Iterable[Batch]) -> None:
        """Keep how far these batches are, and what they did together since the last look."""
        now = self._clock()
        with self._lock:
            before, self._before = self._before, {}
            requests, tokens = self._sum
            for batch in found:
                done = batch.counts.completed + batch.counts.failed
                self._keep(batch.id, _Sample(now, done, batch.completion_tokens))
                if (earlier := before.get(batch.id)) is not None:
                    requests += max(0, done - earlier.counts.completed - earlier.counts.failed)
                    tokens += max(0, batch.completion_tokens - earlier.completion_tokens)
                if not batch.status.final:
                    self._before[batch.id] = batch
            self._sum = (requests, tokens)
            self._keep(ALL, _Sample(now, requests, tokens))
            while len(self._of) > MOST + 1:
                del self._of[
                    min((name for name in self._of if name != ALL), key=lambda name: self._of[name][-1].at)
                ]

    def _keep(self, name: str, sample: _Sample) -> None:
        kept = self._of.setdefault(name, deque(maxlen=int(KEPT / EVERY)))
        kept.append(sample)

    def pace(self, name: str) -> list[Point]:
        """Return the pace over time, the oldest first; empty where less than two looks are known."""
        now = self._clock()
        with self._lock:
            kept = [each for each in self._of.get(name, ()) if now - each.at <= KEPT.total_seconds()]
        step = max(1, -(-len(kept) // _POINTS))
        chosen = kept[::-step][::-1]  # the newest is among them
        return [
            Point(
                ago=now - after.at,
                requests=max(0, after.done - before.done) / (after.at - before.at),
                tokens=max(0, after.tokens - before.tokens) / (after.at - before.at),
            )
            for before, after in pairwise(chosen)
            if after.at > before.at
        ]


def _still_there(store: Store, names: Iterable[str]) -> list[Batch]:
    found = []
    for name in names:
        try:
            found.append(batches.find(store, name))
        except NoSuchBatch:
            continue
    return found
