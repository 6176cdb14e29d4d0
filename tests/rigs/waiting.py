"""Wait for something that another process does."""

from __future__ import annotations

import time
from collections.abc import Callable


def until(happened: Callable[[], bool], *, seconds: float) -> float:
    """Wait until this is so and return how many seconds that took. Raises TimeoutError."""
    start = time.monotonic()
    while not happened():
        if time.monotonic() - start > seconds:
            raise TimeoutError(f"it did not happen within {seconds:g} s")
        time.sleep(0.05)
    return time.monotonic() - start
