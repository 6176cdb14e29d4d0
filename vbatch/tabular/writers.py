"""Write rows as CSV, as JSON Lines or as plain text, one at a time."""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from vbatch.protocol import unbroken
from vbatch.tabular.columns import Column
from vbatch.tabular.documents import decoded, dumps

Write = Callable[[bytes], object]


class RowWriter(ABC):
    """Takes the rows of one table."""

    @abstractmethod
    def add(self, row: Sequence[Any]) -> None:
        """Write one row: a value for each column."""

    def close(self) -> None:  # noqa: B027  (most hold nothing back)
        """Write what is held back. Nothing is added after it."""

    def drop(self) -> None:  # noqa: B027
        """Write nothing any more: the table will not be whole."""


# Where a spreadsheet takes a cell for a formula: https://owasp.org/www-community/attacks/CSV_Injection
_FORMULA = (
    "=",
    "+",
    "-",
    "@",
    "\t",
    "\r",
    "\n",
    "\uff1d",
    "\uff0b",
    "\uff0d",
    "\uff20",
)  # the last: full width
_NUMBER = re.compile(r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_QUOTED = re.compile(r'[",\r\n]')


class Csv(RowWriter):
    """CSV as RFC 4180 has it, with LF: cells are quoted where they have to be, and empty where there is no value.

    Unless ``raw``, a text that a spreadsheet would run gets a leading apostrophe. Python's own writer leaves a
    lone CR unquoted, which every reader takes for the end of a row.
    """

    def __init__(self, write: Write, columns: Sequence[Column], *, raw: bool) -> None:
        self._write, self._raw = write, raw
        self.add([column.name for column in columns])

    def add(self, row: Sequence[Any]) -> None:
        """Write one row."""
        line = ",".join([self._cell(value) for value in row])
        self._write(line.encode() + b"\n" if line else b'""\n')

    def _cell(self, value: Any) -> str:
        if value is None:
            return ""
        if type(value) is int:
            return str(value)
        text = as_text(value)
        if (
            not self._raw
            and isinstance(value, str)
            and text.startswith(_FORMULA)
            and not _NUMBER.fullmatch(text)
        ):
            text = "'" + text
        return '"' + text.replace('"', '""') + '"' if _QUOTED.search(text) else text


class JsonLines(RowWriter):
    """One JSON object per row, its keys the columns."""

    def __init__(self, write: Write, columns: Sequence[Column]) -> None:
        self._write = write
        self._names = [column.name for column in columns]
        self._encode = msgspec.json.Encoder().encode

    def add(self, row: Sequence[Any]) -> None:
        """Write one row."""
        self._write(unbroken(self._encode(dict(zip(self._names, row, strict=True)))) + b"\n")


class Text(RowWriter):
    r"""The answers alone, one line each: in an answer, a line break is written ``\n`` and a backslash ``\\``.

    With ``raw`` they are written as they are. A request without an answer is an empty line.
    """

    def __init__(self, write: Write, *, raw: bool) -> None:
        self._write, self._raw = write, raw

    def add(self, row: Sequence[Any]) -> None:
        """Write the one value of a row."""
        text = as_text(row[0])
        if not self._raw:
            text = text.replace("\\", "\\\\").replace("\r", "\\r").replace("\n", "\\n")
        self._write(text.encode() + b"\n")


def as_text(value: Any) -> str:
    """Return a value as the text of a cell: nothing for none, JSON for what is no text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return str(value)  # of an enumeration, too
    text = dumps(value)
    return str(decoded(text)) if text.startswith('"') else text  # a date, a decimal number, bytes
