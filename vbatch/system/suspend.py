"""How long this machine has slept since its boot: suspended to memory or disk."""

from __future__ import annotations

import time
from datetime import timedelta

NAP = timedelta(seconds=1)  # less is no sleep: the two clocks are read one after the other


def since_boot() -> timedelta:
    """Return it: of two clocks that start at the boot, only one counts on while it sleeps (clock_gettime(2))."""
    return timedelta(
        seconds=time.clock_gettime(time.CLOCK_BOOTTIME) - time.clock_gettime(time.CLOCK_MONOTONIC)
    )
