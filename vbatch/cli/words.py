"""Numbers, times and statuses as people read them."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from vbatch.protocol import BatchStatus

if TYPE_CHECKING:
    from vbatch.store.failures import FailureGroup

STYLES = {
    BatchStatus.VALIDATING: "dim",
    BatchStatus.FAILED: "red",
    BatchStatus.IN_PROGRESS: "cyan",
    BatchStatus.FINALIZING: "cyan",
    BatchStatus.COMPLETED: "green",
    BatchStatus.EXPIRED: "yellow",
    BatchStatus.CANCELLING: "yellow",
    BatchStatus.CANCELLED: "yellow",
}

_STEPS = (("d", 86_400), ("h", 3_600), ("min", 60), ("s", 1))


def count(number: int, noun: str) -> str:
    """``1 request``, ``5,000 requests``, ``2 batches``."""
    plural = noun + ("es" if noun.endswith(("ch", "s", "x")) else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def duration(seconds: float) -> str:
    """The two largest units: ``3 d 4 h``, ``2 min 34 s``, ``12 s``; below a second ``< 1 s``."""
    if seconds < 1:
        return "< 1 s"
    left = round(seconds)
    words: list[str] = []
    for unit, size in _STEPS:
        number, left = divmod(left, size)
        if number:
            words.append(f"{number} {unit}")
        elif words:
            break
    return " ".join(words[:2])


def ago(moment: datetime, *, now: datetime | None = None) -> str:
    """How long ago that was: the largest unit alone."""
    seconds = ((now or datetime.now(UTC)) - moment).total_seconds()
    return "just now" if seconds < 1 else duration(seconds).partition(" ")[0] + " " + _unit(seconds) + " ago"


def _unit(seconds: float) -> str:
    return duration(seconds).split()[1]


def moment(at: datetime) -> str:
    """A time in the reader's own zone, to the second."""
    return at.astimezone().strftime("%Y-%m-%d %H:%M:%S")


def rate(number: float) -> str:
    """Three figures of something per second: ``0.42``, ``12.3``, ``1,405``."""
    return f"{number:.2f}" if number < 10 else f"{number:.1f}" if number < 100 else f"{number:,.0f}"


def percent(done: int, total: int) -> str:
    """Rounded down: 100 % means all of it."""
    return f"{100 * done // total if total else 100} %"


def failure_message(group: FailureGroup) -> str:
    """What the example of a kind of failure says: our own words, or those of the engine's error object."""
    if group.message is not None:
        return group.message
    try:
        answer = json.loads(group.body or b"")
    except ValueError:
        return ""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    message = error.get("message", error) if isinstance(error, dict) else error
    return message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)
