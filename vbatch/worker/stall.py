"""Find out that an engine hangs: it has work and produces nothing."""

from __future__ import annotations

import time
from datetime import timedelta

from vbatch.engine import Engine


class Stall:
    """Watches one engine; ask it often. What the engine does for a chat is progress like any other."""

    def __init__(self, engine: Engine, *, limit: timedelta) -> None:
        self._engine = engine
        self._limit = limit.total_seconds()
        self._progress = (engine.progress, time.monotonic())

    def cause(self, *, busy: bool) -> str | None:
        """Return a cause when the engine is ``busy`` but has not produced a token for too long."""
        progress, since = self._progress
        now = time.monotonic()
        if self._engine.progress != progress or not busy:
            self._progress = (self._engine.progress, now)
        elif now - since > self._limit:
            return f"the engine made no progress for {now - since:.0f} s"
        return None
