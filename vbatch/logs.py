"""Logging: one event per line, an event name and then key=value words, without control characters.

A call such as ``log.info("engine.loaded model=%s", model)`` is the whole interface: the formatter quotes
the arguments, so that a value with spaces stays one word.
"""

from __future__ import annotations

import json
import logging
import os
import re
import sys
import time
from collections.abc import Callable, Mapping
from typing import TextIO

from vbatch.text import harmless

_PLAIN = re.compile(r"[^\s\"=]+")

# sd-daemon(3): a line on stderr that starts with <N> has that syslog priority in the journal.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send every event of this level or above to ``stream`` (default: stderr).

    Of libraries, only warnings and errors.
    """
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(EventFormatter(prioritised if is_journal(target) else stamped))
    send_to(handler, level)


def send_to(handler: logging.Handler, level: str) -> None:
    """Make this handler the only one."""
    number = logging.getLevelNamesMapping()[level.upper()]
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(number, logging.WARNING))
    logging.getLogger("vbatch").setLevel(number)


def stamped(record: logging.LogRecord) -> str:
    """Begin a line with its time (UTC) and level."""
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
    return f"{moment}.{int(record.msecs):03d}Z {record.levelname.lower()} "


def prioritised(record: logging.LogRecord) -> str:
    """Begin a line as the journal wants it; the journal knows the time."""
    return f"<{next(priority for lowest, priority in _PRIORITIES if record.levelno >= lowest)}>"


class EventFormatter(logging.Formatter):
    """Formats a record as ``event key=value …``, after what ``prefix`` makes of it."""

    def __init__(self, prefix: Callable[[logging.LogRecord], str] = lambda _record: "") -> None:
        super().__init__()
        self._prefix = prefix

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, always; a traceback is one more quoted word of it."""
        line = self._prefix(record) + self.event(record)
        if record.exc_info:
            line += " traceback=" + _word(self.formatException(record.exc_info))
        return line

    def event(self, record: logging.LogRecord) -> str:
        """Return what the record reports, without prefix and traceback."""
        if record.name.partition(".")[0] != "vbatch":
            return f"library.event logger={_word(record.name)} message={_word(record.getMessage())}"
        arguments = record.args
        if isinstance(arguments, tuple):
            return str(record.msg) % tuple(_quoted(argument) for argument in arguments)
        if isinstance(arguments, Mapping):
            return str(record.msg) % {key: _quoted(argument) for key, argument in arguments.items()}
        return str(record.msg)


def _quoted(argument: object) -> object:
    return argument if isinstance(argument, (int, float)) else _word(str(argument))


def _word(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return harmless(text)
    return harmless(json.dumps(text, ensure_ascii=False))


def is_journal(stream: TextIO) -> bool:
    """Return whether this stream goes straight to the journal ($JOURNAL_STREAM, systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
