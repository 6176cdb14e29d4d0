"""The hours in which workers rest: any day, past midnight, over clock changes; what is wrong is refused by name."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from vbatch import config
from vbatch.config.pause_hours import parse, until
from vbatch.errors import ConfigError, ExitCode

BERLIN = ZoneInfo("Europe/Berlin")


def end(now: str, *hours: str) -> str | None:
    """Return until when a pause lasts, by the clock in Berlin, with its offset; ``now`` may name one too."""
    moment = datetime.fromisoformat(now)
    found = until(
        [parse(each) for each in hours],
        moment.replace(tzinfo=moment.tzinfo or BERLIN),
        zone=BERLIN,
    )
    return None if found is None else found.astimezone(BERLIN).strftime("%a %H:%M%z")


def test_hours_and_days() -> None:
    """2026-11-26 is a Thursday. Mutants: an end that is inside; days that do not go around the week."""
    assert end("2026-11-26 07:59", "08:00-18:00") is None
    assert end("2026-11-26 08:00", "08:00-18:00") == "Thu 18:00+0100"
    assert end("2026-11-26 18:00", "08:00-18:00") is None
    assert end("2026-11-26 18:00", "Mon-Fri 18:00-20:00") == "Thu 20:00+0100"
    assert end("2026-11-28 18:00", "Mon-Fri 18:00-20:00") is None
    assert end("2026-11-30 18:00", "fri - MON 18:00-20:00") == "Mon 20:00+0100"
    assert end("2026-11-26 18:00", "Fri-Mon 18:00-20:00") is None
    assert end("2026-11-29 12:00", "Sun 0:00-24:00") == "Mon 00:00+0100"


def test_past_midnight_a_pause_belongs_to_the_day_of_its_beginning() -> None:
    """Mutants: no look at yesterday; the days asked of ``now`` and not of the beginning."""
    assert end("2026-11-28 02:00", "Fri 22:00-06:00") == "Sat 06:00+0100"
    assert end("2026-11-27 02:00", "Fri 22:00-06:00") is None
    assert end("2026-11-27 23:00", "Fri 22:00-06:00") == "Sat 06:00+0100"
    assert end("2026-11-30 00:30", "Sun 23:00-01:00") == "Mon 01:00+0100"


def test_pauses_without_a_gap_are_one() -> None:
    """Mutant: the end of the first one alone."""
    hours = ("08:00-18:00", "Mon-Fri 18:00-20:00", "19:00-21:00")
    assert end("2026-11-26 09:00", *hours) == "Thu 21:00+0100"
    assert end("2026-11-28 09:00", *hours) == "Sat 18:00+0100"


def test_when_the_clock_goes_forward() -> None:
    """In Berlin 02:00 to 03:00 does not exist on 2026-03-29. Mutants: times of UTC; a fold that is always 0, or 1."""
    assert end("2026-03-29 01:59", "22:00-06:00") == "Sun 06:00+0200"
    assert end("2026-03-29 01:59", "22:00-02:30") == "Sun 03:30+0200"  # never shorter than asked for
    assert end("2026-03-29 03:10", "02:30-05:00") == "Sun 05:00+0200"
    assert end("2026-03-30 02:40", "02:30-05:00") == "Mon 05:00+0200"


def test_when_the_clock_goes_back() -> None:
    """In Berlin 02:00 to 03:00 comes twice on 2026-10-25. Mutants: min for max, and max for min."""
    assert end("2026-10-25 02:10+02:00", "22:00-02:30") == "Sun 02:30+0100"
    assert end("2026-10-25 02:45+02:00", "22:00-02:30") == "Sun 02:30+0100"
    assert end("2026-10-25 02:45+01:00", "22:00-02:30") is None
    assert end("2026-10-25 02:30+02:00", "02:30-04:00") == "Sun 04:00+0100"
    assert end("2026-10-25 02:10+01:00", "02:30-04:00") == "Sun 04:00+0100"


@pytest.fixture
def tokyo(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A machine whose clock shows the time of Tokyo."""
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("tokyo")
def test_they_are_hours_of_the_machines_clock() -> None:
    """Mutant: a zone of None taken for UTC."""
    found = until([parse("08:00-18:00")], datetime(2026, 11, 26, 0, tzinfo=UTC))
    assert found == datetime(2026, 11, 26, 9, tzinfo=UTC)
    assert until([parse("08:00-18:00")], datetime(2026, 11, 26, 9, tzinfo=UTC)) is None


@pytest.mark.parametrize(
    ("written", "words"),
    [
        ('["8-18"]', "'8-18' is not of the form 08:00-18:00 or Mon-Fri 18:00-20:00"),
        (
            '["Mo-Fr 08:00-18:00"]',
            "'Mo-Fr 08:00-18:00' is not of the form 08:00-18:00 or Mon-Fri 18:00-20:00",
        ),
        ('["Mon-Fre 08:00-18:00"]', "has no day in 'Fre'; write Mon Tue Wed Thu Fri Sat Sun"),
        ('["08:00-25:00"]', "has no time of day in '25:00'; write 00:00 to 24:00"),
        ('["08:60-09:00"]', "has no time of day in '08:60'"),
        ('["08:00-08:00"]', "ends when it begins; a whole day is 00:00-24:00"),
        ('["24:00-08:00"]', "begins at 24:00; write 00:00 of the day that it begins on"),
        ("[8]", 'it must be a list of texts, such as ["08:00-18:00", "Mon-Fri 18:00-20:00"]'),
        ('["00:00-24:00"]', "no hour of the week is left in which a worker would work"),
        ('["Mon-Sat 20:00-20:00"]', "ends when it begins"),
        ('["12:00-24:00", "Mon-Sun 00:00-12:00"]', "no hour of the week is left"),
    ],
)
def test_what_is_wrong_is_refused_with_place_and_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, written: str, words: str
) -> None:
    """Mutants: a parse that takes anything; hours that leave none accepted."""
    file = tmp_path / "config.toml"
    file.write_text(f"pause_hours = {written}\n")
    monkeypatch.setenv("VBATCH_CONFIG", str(file))
    with pytest.raises(ConfigError) as error:
        config.load()
    assert error.value.exit_code is ExitCode.MISCONFIGURED
    assert error.value.message.startswith(f"{file}: pause_hours: ")
    assert words in error.value.message


def test_a_variable_has_them_between_commas(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('pause_hours = ["08:00-18:00", "Mon-Fri 18:00-20:00"]\n')
    monkeypatch.setenv("VBATCH_CONFIG", str(file))
    written = config.load().pause_hours
    monkeypatch.setenv("VBATCH_CONFIG", "/dev/null")
    monkeypatch.setenv("VBATCH_PAUSE_HOURS", "08:00-18:00, Mon-Fri 18:00-20:00")
    assert config.load().pause_hours == written == (parse("08:00-18:00"), parse("Mon-Fri 18:00-20:00"))
    monkeypatch.setenv("VBATCH_PAUSE_HOURS", "8 to 18")
    with pytest.raises(ConfigError, match="VBATCH_PAUSE_HOURS: '8 to 18' is not of the form"):
        config.load()
