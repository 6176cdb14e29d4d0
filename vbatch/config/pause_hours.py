"""The hours of the day in which workers rest, as the setting ``pause_hours`` has them: ``Mon-Fri 18:00-20:00``.

They are hours of the machine's clock. One that ends before it begins goes past midnight, and belongs to the day on
which it begins. Where a clock change makes a beginning or an end happen twice, or not at all, the pause is the longer
one: people who count on the GPU have it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta, tzinfo
from typing import Annotated

from pydantic import BeforeValidator, InstanceOf

from vbatch.text import one_line

DAY = 24 * 60  # minutes
_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_WRITTEN = re.compile(
    r"(?:(?P<first>[a-z]{3})(?:\s*-\s*(?P<last>[a-z]{3}))?\s+)?"
    r"(?P<begin>\d{1,2}:\d\d)\s*-\s*(?P<end>\d{1,2}:\d\d)",
    re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """Minutes after midnight, on these days (0 is Monday); an ``end`` above a day's minutes is on the next one."""

    begin: int
    end: int
    days: frozenset[int] = frozenset(range(7))

    def on(self, day: date, zone: tzinfo | None) -> tuple[datetime, datetime] | None:
        """Return when the pause of this day begins and ends; None where the day has none."""
        if day.weekday() not in self.days:
            return None
        midnight = datetime(day.year, day.month, day.day)
        return (
            min(_both(midnight + timedelta(minutes=self.begin), zone)),
            max(_both(midnight + timedelta(minutes=self.end), zone)),
        )


def _both(wall: datetime, zone: tzinfo | None) -> tuple[datetime, datetime]:
    """Return the two moments that a time of the clock may be: they differ only at a clock change."""
    first, second = (wall.replace(tzinfo=zone, fold=fold).astimezone(UTC) for fold in (0, 1))
    return first, second


def until(hours: Sequence[Hours], now: datetime, *, zone: tzinfo | None = None) -> datetime | None:
    """Return when the pause ends in which ``now`` lies; None where it lies in none.

    ``zone`` is the machine's own where it is None. Pauses that follow each other without a gap are one.
    """
    moment, end = now.astimezone(UTC), None
    while (later := _end(hours, moment, zone)) is not None:
        moment = end = later
    return end


def _end(hours: Sequence[Hours], moment: datetime, zone: tzinfo | None) -> datetime | None:
    today = moment.astimezone(zone).date()
    ends = [
        times[1]
        for each in hours
        for day in (today - timedelta(days=1), today, today + timedelta(days=1))
        if (times := each.on(day, zone)) is not None and times[0] <= moment < times[1]
    ]
    return max(ends, default=None)


def parse(text: str) -> Hours:
    """Read ``08:00-18:00`` or ``Mon-Fri 22:00-06:00``. Raises ValueError, in words for people."""
    found = _WRITTEN.fullmatch(text.strip())
    if found is None:
        raise ValueError(_wrong(text, "is not of the form 08:00-18:00 or Mon-Fri 18:00-20:00"))
    begin, end = (_minutes(found[name], text) for name in ("begin", "end"))
    if begin == end:
        raise ValueError(_wrong(text, "ends when it begins; a whole day is 00:00-24:00"))
    if begin == DAY:
        raise ValueError(_wrong(text, "begins at 24:00; write 00:00 of the day that it begins on"))
    return Hours(begin=begin, end=end if end > begin else end + DAY, days=_days(found, text))


def _minutes(clock: str, text: str) -> int:
    hour, minute = map(int, clock.split(":"))
    if minute > 59 or hour * 60 + minute > DAY:
        raise ValueError(_wrong(text, f"has no time of day in '{clock}'; write 00:00 to 24:00"))
    return hour * 60 + minute


def _days(found: re.Match[str], text: str) -> frozenset[int]:
    if found["first"] is None:
        return frozenset(range(7))
    numbers = []
    for name in (found["first"], found["last"] or found["first"]):
        if name.lower() not in _DAYS:
            raise ValueError(_wrong(text, f"has no day in '{name}'; write Mon Tue Wed Thu Fri Sat Sun"))
        numbers.append(_DAYS.index(name.lower()))
    first, last = numbers
    return frozenset((first + more) % 7 for more in range((last - first) % 7 + 1))


def _wrong(text: str, what: str) -> str:
    return f"'{one_line(text, limit=60)}' {what}"


def _read(value: object) -> object:
    """Read a list of the file, or the texts of a variable between commas. Raises ValueError."""
    texts = [part for part in value.split(",") if part.strip()] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str | Hours) for text in texts):
        raise ValueError('it must be a list of texts, such as ["08:00-18:00", "Mon-Fri 18:00-20:00"]')
    hours = tuple(text if isinstance(text, Hours) else parse(text) for text in texts)
    if not _leave_time(hours):
        raise ValueError("no hour of the week is left in which a worker would work")
    return hours


def _leave_time(hours: Sequence[Hours]) -> bool:
    paused = {
        (day * DAY + minute) % (7 * DAY)
        for each in hours
        for day in each.days
        for minute in range(each.begin, each.end)
    }
    return len(paused) < 7 * DAY


PauseHours = Annotated[tuple[InstanceOf[Hours], ...], BeforeValidator(_read)]
