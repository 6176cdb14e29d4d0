"""Templates: a text with the names of columns in braces, filled for each row. ``{{`` and ``}}`` are braces themselves.

Nothing is formatted, looked up or run: what stands in braces is the name of a column, letter by letter.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vbatch.errors import TableError, UsageError

_PART = re.compile(r"\{\{|\}\}|\{([^{}]*)\}|[{}]")
_TEMPLATES = ("--prompt", "--system")
NAMED = 12  # columns that a message names
_ESCAPE = "a brace of the text itself is doubled: {{ or }}"


class NoSuchColumn(Exception):
    """A template names a column that is not there."""

    def __init__(self, column: str) -> None:
        self.column = column
        super().__init__(column)


@dataclass(frozen=True, slots=True)
class Template:
    """A text of which every second part is the name of a column."""

    parts: Sequence[str]

    @classmethod
    def of(cls, text: str, option: str) -> Template:
        """Read a template. Raises UsageError, which names the ``option``, for braces without a partner."""
        parts = [""]
        end = 0
        for found in _PART.finditer(text):
            parts[-1] += text[end : found.start()]
            end = found.end()
            match found[0]:
                case "{{" | "}}":
                    parts[-1] += found[0][0]
                case "{" | "}":
                    near = text[max(0, found.start() - 20) : found.start() + 20]
                    raise UsageError(f"{option}: a brace without a partner near {near!r}", hint=_ESCAPE)
                case "{}":
                    raise UsageError(f"{option}: {{}} names no column", hint=_ESCAPE)
                case _:
                    parts += [found[1].strip(), ""]
        parts[-1] += text[end:]
        return cls(parts)

    @property
    def columns(self) -> Sequence[str]:
        """The columns that it names."""
        return self.parts[1::2]

    def fill(self, cells: Mapping[str, Any]) -> str:
        """Return the text for a row. Raises NoSuchColumn."""
        try:
            return "".join(
                part if place % 2 == 0 else shown(cells[part]) for place, part in enumerate(self.parts)
            )
        except KeyError as error:
            raise NoSuchColumn(error.args[0]) from None


def shown(value: Any) -> str:
    """Return a cell as a prompt shows it: a text itself, nothing for an empty cell, anything else as JSON."""
    match value:
        case str():
            return value
        case None:
            return ""
        case bytes():
            raise TypeError("it holds bytes, not text")
        case bool() | int() | float() | list() | dict():
            return json.dumps(value, ensure_ascii=False, default=str)
        case _:
            return str(value)  # a date, a decimal number


def no_such_column(column: str, columns: Iterable[str], *, option: str, where: str) -> TableError:
    """Return the error of a column that a table does not have: with those it has, and the nearest one."""
    known = [name for name in columns if name]
    near = difflib.get_close_matches(column, known, n=1, cutoff=0.5) or [
        name for name in known if name.lower() == column.lower()
    ]
    named = ", ".join(known[:NAMED]) + (f" and {len(known) - NAMED} more" if len(known) > NAMED else "")
    return TableError(
        f"{where} has no column {column!r}, which {option} names; it has {named or 'none'}",
        hint=f"did you mean {near[0]!r}?"
        if near
        else _ESCAPE
        if option in _TEMPLATES
        else f"{option} COLUMN",
    )
