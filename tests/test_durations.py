"""Durations as people write them."""

from __future__ import annotations

from datetime import timedelta

import pytest

from vbatch.durations import format_duration, parse_duration


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("1h30m", timedelta(hours=1, minutes=30)),
        ("2 d", timedelta(days=2)),
        ("250ms", timedelta(milliseconds=250)),
        ("1.5h", timedelta(minutes=90)),
        ("3", timedelta(seconds=3)),
    ],
)
def test_read(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "5x", "h", "1h soon", "-3s", "0s", "9999999999d", "1h-30m"])
def test_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration|is too long"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("duration", "written"),
    [
        (timedelta(), "0 s"),
        (timedelta(seconds=59.9), "59 s"),
        (timedelta(hours=7), "7 h"),
        (timedelta(hours=7, seconds=5), "7 h"),
        (timedelta(hours=29, minutes=59), "1 d 5 h"),
        (timedelta(minutes=4, seconds=10), "4 min 10 s"),
    ],
)
def test_written_in_the_two_largest_units(duration: timedelta, written: str) -> None:
    """Mutant: the units of the front that are 0 are counted; ``7 h`` would be ``0 d 7 h``."""
    assert format_duration(duration) == written
