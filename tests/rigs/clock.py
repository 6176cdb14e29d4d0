"""A monotonic clock that a test holds, in the place of a module's ``time``."""

from __future__ import annotations


class Clock:
    """Monotonic time that passes when the test moves it."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now
