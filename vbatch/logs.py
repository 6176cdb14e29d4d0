"""Logging: one event a line, an event name and then key=value words, nothing a terminal would obey.

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
from collections.abc import Mapping
from typing import TextIO

from vbatch.text import harmless

_PLAIN = re.compile(r"[^\s\"=]+")

# sd-daemon(3): a line on stderr that starts with <N> has that syslog priority in the journal.
_PRIORITIES = ((logging.CRITICAL, 2), (logging.ERROR, 3), (logging.WARNING, 4), (logging.INFO, 6), (0, 7))


def configure(level: str, stream: TextIO | None = None) -> None:
    """Send every event of this level or above to ``stream`` (default: stderr).

    vbatch's own events at ``level``; those of libraries only from WARNING on.
    """
    target = stream or sys.stderr
    handler = logging.StreamHandler(target)
    handler.setFormatter(EventFormatter(journal=_is_journal(target)))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("vbatch").setLevel(level.upper())


class EventFormatter(logging.Formatter):
    """Formats a record as ``time level event key=value …``; for the journal as ``<N>event key=value …``."""

    def __init__(self, *, journal: bool = False) -> None:
        super().__init__()
        self._journal = journal

    def format(self, record: logging.LogRecord) -> str:
        """Return one line; a traceback follows it as one more quoted word."""
        line = _event(record)
        if record.exc_info:
            line += " traceback=" + _word(self.formatException(record.exc_info))
        if self._journal:
            return f"<{_priority(record.levelno)}>{line}"
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        return f"{moment}.{int(record.msecs):03d}Z {record.levelname.lower()} {line}"


def _event(record: logging.LogRecord) -> str:
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


def _priority(level: int) -> int:
    return next(priority for lowest, priority in _PRIORITIES if level >= lowest)


def _is_journal(stream: TextIO) -> bool:
    """Say whether this stream goes straight to the journal ($JOURNAL_STREAM, systemd.exec(5))."""
    try:
        status = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{status.st_dev}:{status.st_ino}"
