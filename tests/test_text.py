"""Strangers' text cannot steer a terminal, and stays readable; durations, sizes and plurals in words."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbatch.text import (
    ago,
    count,
    duration,
    harmless,
    is_obeyed,
    one_line,
    parse_duration,
    percent,
    rate,
    size,
)

NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("Grüße, 世界, 👩‍🔬", "Grüße, 世界, 👩‍🔬"),
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x9b31m", r"\x9b31m"),  # the one-character CSI
        ("a\rb\nc\x00", r"a\rb\nc\x00"),
        ("user\u202etxt.exe", r"user\u202etxt.exe"),
        ("\udcff", r"\udcff"),  # a byte of a file name that is not UTF-8
        ("\u2028", r"\u2028"),
    ],
)
def test_harmless(text: str, expected: str) -> None:
    assert harmless(text) == expected


@given(st.text(alphabet=st.characters(categories=["Cc", "Cf", "Cs", "L", "Zs"])))
def test_nothing_obeyed_is_left(text: str) -> None:
    assert not any(is_obeyed(character) for character in harmless(text))


def test_one_line_squeezes_and_cuts() -> None:
    assert one_line("two\n  lines\tand more", limit=100) == "two lines and more"
    assert one_line("abcdefghij", limit=5) == "abcd…"


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
def test_a_duration_is_read(text: str, expected: timedelta) -> None:
    assert parse_duration(text) == expected


@pytest.mark.parametrize("text", ["", "soon", "5x", "h", "1h soon", "-3s", "0s", "9999999999d", "1h-30m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"is not a duration|is too long"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.2, "< 1 s"), (1, "1 s"), (59.6, "1 min"), (60, "1 min"), (61, "1 min 1 s"), (3600, "1 h"),
        (3659, "1 h"), (5400, "1 h 30 min"), (90_000, "1 d 1 h"), (86_405, "1 d"),
    ],
)  # fmt: skip
def test_durations(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


def test_numbers() -> None:
    assert count(1, "batch") == "1 batch"
    assert count(5000, "batch") == "5,000 batches"
    assert percent(999, 1000) == "99 %"
    assert percent(0, 0) == "100 %"
    assert [rate(number) for number in (0.42, 12.34, 1405.2)] == ["0.42", "12.3", "1,405"]
    assert [size(number) for number in (16 << 30, 3 << 29, 100 << 20)] == ["16.0 GiB", "1.5 GiB", "100 MiB"]
    assert ago(NOW, now=NOW + timedelta(hours=3, minutes=10)) == "3 h ago"
    assert ago(NOW, now=NOW) == "just now"
    assert ago(NOW + timedelta(hours=1), now=NOW) == "just now"
