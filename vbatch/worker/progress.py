"""What the worker shows of itself: one frozen snapshot, and the rates in it."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import timedelta
from typing import NamedTuple

from vbatch.engine.figures import EngineFigures
from vbatch.gpu import Gpu
from vbatch.store.overview import Backlog

RATE_WINDOW = timedelta(seconds=60)
GPU_FRESH = timedelta(seconds=10)


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The worker at one moment. Rates are per second over the last minute; counts are requests.

    ``total``, ``completed`` and ``failed`` are of all unfinished ``batches`` together; ``saved`` and the tokens
    are this worker's, since its start; ``saved_at`` is monotonic time. ``remaining_seconds`` is None while
    nothing is known. ``left_alone`` waits for a worker with another engine; ``blocked`` maps each model that cannot be
    loaded to the reason; ``names`` are those at which the engine answers, the model first. ``paused`` is why it rests,
    or will when its requests have finished. ``advice`` says what would let the ``engine`` do more.
    """

    state: str = "starting"
    paused: str | None = None
    worker: str | None = None
    model: str | None = None
    names: tuple[str, ...] = ()
    batch: str | None = None
    batches: int = 0
    total: int = 0
    completed: int = 0
    failed: int = 0
    running: int = 0
    chats: int = 0
    saved: int = 0
    saved_failed: int = 0
    cut_off: int = 0
    empty: int = 0
    saved_at: float | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    requests_per_second: float = 0.0
    prompt_tokens_per_second: float = 0.0
    completion_tokens_per_second: float = 0.0
    engine_loads: int = 0
    engine_crashes: int = 0
    crash_cause: str | None = None
    waiting_for: str | None = None
    store_outages: int = 0
    store_outage_seconds: float = 0.0
    trouble: str | None = None
    left_alone: tuple[Backlog, ...] = ()
    blocked: Mapping[str, str] = field(default_factory=dict)
    engine: EngineFigures | None = None
    advice: str | None = None
    gpus: tuple[Gpu, ...] = ()
    gpus_seen_at: float = 0.0

    @property
    def gpus_now(self) -> tuple[Gpu, ...]:
        """The last reading of each GPU of the engine; none where it is not fresh: the driver may hang."""
        return self.gpus if time.monotonic() - self.gpus_seen_at < GPU_FRESH.total_seconds() else ()

    @property
    def note(self) -> str | None:
        """What others should know of this worker: its present trouble, how its engines crashed, or an advice."""
        if self.trouble is not None or self.paused is not None or self.crash_cause is None:
            return self.trouble or self.paused or self.advice
        if self.engine_crashes == 1:
            return f"the engine crashed: {self.crash_cause}"
        return f"the engine crashed {self.engine_crashes} times, the last time: {self.crash_cause}"

    @property
    def remaining_seconds(self) -> float | None:
        """How long the queue will take at the present rate."""
        left = self.total - self.completed - self.failed
        return left / self.requests_per_second if self.requests_per_second > 0 else None


class View:
    """Holds the newest snapshot for whoever draws it; written and read from any thread."""

    def __init__(self) -> None:
        self.snapshot = Snapshot()
        self._lock = threading.RLock()

    def update(self, **changes: object) -> None:
        """Replace some fields."""
        with self._lock:
            self.snapshot = replace(self.snapshot, **changes)  # type: ignore[arg-type]  # any field

    def wait_for_store(self, reason: str | None, seconds: float) -> None:
        """Take what the store reports while it is unreachable; None when it is back."""
        with self._lock:
            begins = reason is not None and self.snapshot.waiting_for is None
            self.update(
                waiting_for=reason and f"the store: {reason}",
                store_outages=self.snapshot.store_outages + begins,
                store_outage_seconds=seconds if reason is not None else 0.0,
            )

    def count(
        self, *, saved: int, failed: int, cut_off: int, empty: int, prompt_tokens: int, completion_tokens: int
    ) -> None:
        """Count what a flush recorded."""
        with self._lock:
            now = self.snapshot
            self.update(
                saved=now.saved + saved,
                saved_failed=now.saved_failed + failed,
                cut_off=now.cut_off + cut_off,
                empty=now.empty + empty,
                saved_at=time.monotonic() if saved else now.saved_at,
                prompt_tokens=now.prompt_tokens + prompt_tokens,
                completion_tokens=now.completion_tokens + completion_tokens,
            )


class _Saved(NamedTuple):
    at: float
    requests: int
    prompt_tokens: int
    completion_tokens: int


@dataclass(slots=True)
class Meter:
    """Rates of what was saved, over a sliding window."""

    _window: deque[_Saved] = field(default_factory=deque)
    _since: float = field(default_factory=time.monotonic)

    def add(self, *, requests: int, prompt_tokens: int, completion_tokens: int) -> None:
        """Count a flush."""
        self._window.append(_Saved(time.monotonic(), requests, prompt_tokens, completion_tokens))

    def rates(self) -> tuple[float, float, float]:
        """Return requests, prompt tokens and completion tokens per second."""
        now = time.monotonic()
        start = now - RATE_WINDOW.total_seconds()
        while self._window and self._window[0].at < start:
            self._window.popleft()
        seconds = max(now - max(self._since, start), 1.0)
        return (
            sum(saved.requests for saved in self._window) / seconds,
            sum(saved.prompt_tokens for saved in self._window) / seconds,
            sum(saved.completion_tokens for saved in self._window) / seconds,
        )
