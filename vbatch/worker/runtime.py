"""``--max-runtime``: a worker that has ended before the time limit of its job, with what is unfinished handed back."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable
from datetime import timedelta

from vbatch.worker.stop import Stop

log = logging.getLogger(__name__)

RESERVE = timedelta(seconds=15)  # to save, hand back and unload, after the running requests had their time


def end_within(stop: Stop, limit: timedelta, *, drain_limit: timedelta) -> timedelta:
    """Have the worker stop in time, counted from now; return how long its running requests may take then.

    That is the drain limit, but at most half of the time. A worker that is still there when the time is over (the
    driver or the disk hangs) ends as by a second signal: the leases of what it held lapse.
    """
    reserve = min(RESERVE, limit / 4)
    lasts = min(drain_limit, limit / 2)

    def begin() -> None:
        log.info("worker.runtime_over seconds=%.0f", (lasts + reserve).total_seconds())
        stop.request()

    _after(limit - lasts - reserve, begin)
    _after(limit, lambda: _end(stop))
    return lasts


def _end(stop: Stop) -> None:
    stop.on_second()
    stop.on_exit()
    os._exit(128 + signal.SIGTERM)


def _after(time: timedelta, call: Callable[[], None]) -> None:
    timer = threading.Timer(time.total_seconds(), call)
    timer.daemon = True
    timer.start()
