"""Plain progress while a program waits: one line, rewritten on a terminal and in a notebook, else now and then."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from typing import Self

from vbatch.batches import Status, explained
from vbatch.errors import VbatchError
from vbatch.text import count, duration, one_line, percent, rate

PLAIN_LINE = 30.0  # seconds between two lines in a file or a pipe
_WIDTH = 100


class WaitTimeout(VbatchError, TimeoutError):
    """The batch has not ended in the time that was given; it continues."""

    code = "wait_timeout"


class Progress:
    """Shows how a batch is doing on stderr, if it is ``wanted``. Leaving it ends a line that would be rewritten."""

    def __init__(self, *, wanted: bool) -> None:
        self._wanted = wanted
        self._ended = True
        self._rewrites = sys.stderr is not None and (sys.stderr.isatty() or "ipykernel" in sys.modules)
        self._shown = ""
        self._due = 0.0

    def show(self, status: Status) -> None:
        """Show where the batch is: at once where it ended, else not too often."""
        final = status.batch.status.final
        if not self._wanted or sys.stderr is None:
            return
        line = one_line(progress_line(status), limit=_WIDTH if self._rewrites else 1000)
        if self._rewrites:
            sys.stderr.write(f"\r{line:<{len(self._shown)}}" + ("\n" if final else ""))
        elif final or time.monotonic() >= self._due:
            sys.stderr.write(f"{line}\n")
            self._due = time.monotonic() + PLAIN_LINE
        self._shown, self._ended = line, final
        sys.stderr.flush()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._rewrites and not self._ended:
            sys.stderr.write("\n")


def progress_line(status: Status) -> str:
    """Return how a batch is doing, in one line."""
    batch, counts = status.batch, status.batch.counts
    done = counts.completed + counts.failed
    parts = [f"{batch.id}: {done:,} of {count(counts.total, 'request')} ({percent(done, counts.total)})"]
    if counts.failed:
        parts.append(f"{counts.failed:,} failed")
    if batch.status.final:
        parts.append(str(batch.status))
        return ", ".join(parts)
    if status.requests_per_second is not None:
        parts.append(f"{rate(status.requests_per_second)}/s")
    if status.remaining is not None:
        parts.append(f"{_words(status.remaining)} left")
    if status.at_work is not None and status.at_work.files_wait_for is not None:
        parts.append(explained(batch, status.at_work.files_wait_for))
    elif status.at_work is not None and status.at_work.blocked.entirely:
        parts.append(f"blocked: {status.at_work.blocked.models[0].reason}")
    elif status.at_work is not None and (not status.at_work.workers or status.at_work.unserved):
        parts.append(f"no worker for it is running; start one with: {status.at_work.command}")
    return ", ".join(parts)


def _words(remaining: timedelta) -> str:
    return duration(remaining.total_seconds())
