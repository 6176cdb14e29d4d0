"""Find out that an engine hangs: it has work and produces nothing."""

from __future__ import annotations

import time
from datetime import timedelta

from vbatch.engine import Engine

LOOKS = 3  # at least: one long gap between two looks is a machine that was asleep or busy, not an engine that hangs


class Stall:
    """Watches one engine; ask it often. What the engine does for a chat is progress like any other."""

    def __init__(self, engine: Engine, *, limit: timedelta) -> None:
        self._engine = engine
        self._limit = limit.total_seconds()
        self._progress = engine.progress
        self._looked = time.monotonic()
        self._silent = 0.0

    def cause(self, *, busy: bool) -> str | None:
        """Return a cause when the engine is ``busy`` but has not produced a token for too long.

        Of the time since the last look at most a third of the limit counts: a process that was stopped, or a virtual
        machine that was paused, has an engine that could do nothing either.
        """
        now = time.monotonic()
        if self._engine.progress != self._progress or not busy:
            self._progress, self._silent = self._engine.progress, 0.0
        else:
            self._silent += min(now - self._looked, self._limit / LOOKS)
        self._looked = now
        if self._silent > self._limit:
            return f"the engine made no progress for {self._silent:.0f} s"
        return None
