"""Durations as people write and read them: ``90s``, ``15m``, ``1h30m``, ``2d``."""

from __future__ import annotations

import re
from datetime import timedelta

_UNITS = {"ms": "milliseconds", "s": "seconds", "m": "minutes", "min": "minutes", "h": "hours", "d": "days"}
_PART = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|min|m|s|h|d)\s*")

LONGEST = timedelta(days=36_500)  # so that adding it to today's date gives a date


def parse_duration(text: str) -> timedelta:
    """Read ``90s``, ``15m``, ``1h30m``, ``2d`` or a bare number of seconds.

    Raises ValueError, in words for people, for anything else and for what is not above zero.
    """
    compact = text.strip().lower()
    if re.fullmatch(r"\d+(\.\d+)?", compact):
        compact += "s"
    parts = _PART.findall(compact)
    if not parts or "".join(_PART.split(compact)[::3]) != "":
        raise ValueError(f"'{text}' is not a duration; write 90s, 15m, 1h30m or 2d")
    try:
        duration = sum((timedelta(**{_UNITS[unit]: float(number)}) for number, unit in parts), timedelta())
    except OverflowError:
        raise ValueError(f"'{text}' is too long a duration") from None
    if duration > LONGEST:
        raise ValueError(f"'{text}' is too long a duration; the longest is {LONGEST.days}d")
    if duration <= timedelta():
        raise ValueError(f"'{text}' is not a duration above zero")
    return duration


def format_duration(duration: timedelta) -> str:
    """Write a duration in its two largest units: ``1 d 5 h``, ``7 h``, ``5 s``."""
    rest = int(duration.total_seconds())
    parts: list[str] = []
    for size, unit in ((86_400, "d"), (3_600, "h"), (60, "min"), (1, "s")):
        count, rest = divmod(rest, size)
        parts += [f"{count} {unit}"] if count or parts else []
    return " ".join(part for part in parts[:2] if not part.startswith("0 ")) or "0 s"
