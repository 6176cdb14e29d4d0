"""One event a line, whatever is logged."""

from __future__ import annotations

import io
import logging
import os
import sys
from collections.abc import Callable, Iterator

import pytest

from vbatch import logs

Prefix = Callable[[logging.LogRecord], str]


def formatted(name: str, message: str, *arguments: object, prefix: Prefix = logs.stamped) -> str:
    record = logging.LogRecord(name, logging.WARNING, "", 0, message, arguments, None)
    return logs.EventFormatter(prefix).format(record)


def test_values_stay_one_word() -> None:
    line = formatted(
        "vbatch.worker", "engine.died model=%s cause=%s after=%.1f", "m", 'out of "memory"', 2.34
    )
    assert line.split("Z ", 1)[1] == r'warning engine.died model=m cause="out of \"memory\"" after=2.3'


def test_control_characters_are_harmless() -> None:
    line = formatted("vbatch.worker", "x name=%s", "a\nb\x1b[2J\u202e")
    assert "\n" not in line
    assert "\x1b" not in line
    assert "\u202e" not in line


def test_libraries_are_quoted() -> None:
    line = formatted("sqlalchemy.pool", "lost %s\nagain", "it")
    assert line.endswith(r'library.event logger=sqlalchemy.pool message="lost it\nagain"')


def test_a_traceback_is_one_more_word() -> None:
    try:
        raise ValueError("bad\nthing")
    except ValueError:
        record = logging.LogRecord("vbatch.x", logging.ERROR, "", 0, "broke", (), sys.exc_info())
    assert logs.EventFormatter().format(record).count("\n") == 0


def test_the_journal_gets_priorities_and_no_times() -> None:
    assert formatted("vbatch.worker", "worker.ready", prefix=logs.prioritised) == "<4>worker.ready"


@pytest.mark.usefixtures("_loggers")
def test_the_journal_is_recognised_by_its_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    reader, writer = os.pipe()
    status = os.fstat(writer)
    monkeypatch.setenv("JOURNAL_STREAM", f"{status.st_dev}:{status.st_ino}")
    with os.fdopen(reader) as journal:
        with os.fdopen(writer, "w") as stream:
            logs.configure("info", stream)
            logging.getLogger("vbatch.x").info("hello who=%s", "world")
        assert journal.read() == "<6>hello who=world\n"


@pytest.mark.usefixtures("_loggers")
def test_levels_are_ours_not_the_libraries() -> None:
    stream = io.StringIO()
    logs.configure("debug", stream)
    logging.getLogger("vbatch.x").debug("mine")
    logging.getLogger("other").info("theirs")
    assert "mine" in stream.getvalue()
    assert "theirs" not in stream.getvalue()


@pytest.fixture
def _loggers() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("vbatch")
    before = root.handlers[:], root.level, ours.level
    yield
    root.handlers[:], root.level, ours.level = before[0], before[1], before[2]
