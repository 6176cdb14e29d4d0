"""Which columns a table has: those of a joined table, those of the record, those of a JSON answer.

Names are unique: a column of the record whose name the joined table has already is called ``vbatch_NAME``, a field
of the answer whose name is taken ``answer_NAME``.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum, auto
from typing import Any

from vbatch.tabular.documents import decode, decoded
from vbatch.tabular.record import NAMES, NUMBERS, Record


class Kind(StrEnum):
    """What the values of a column are. A value of another kind is kept as a text where that is possible."""

    TEXT = auto()
    INTEGER = auto()
    NUMBER = auto()
    BOOLEAN = auto()
    VECTOR = auto()  # a list of numbers
    ANY = auto()  # whatever JSON has


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A column: its name in the table that is written, its name where its values come from, and what they are."""

    name: str
    source: str
    kind: Kind


_FENCE = re.compile(r"\s*```(?:json)?\s*\n(.*)\n\s*```\s*", re.DOTALL)
_KINDS = {
    "string": Kind.TEXT,
    "integer": Kind.INTEGER,
    "number": Kind.NUMBER,
    "boolean": Kind.BOOLEAN,
}
_VECTOR = "embedding"


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The columns of a table, in their order: of the joined table, of the record, of the answer."""

    joined: tuple[Column, ...]
    record: tuple[Column, ...]
    answer: tuple[Column, ...]

    @property
    def columns(self) -> tuple[Column, ...]:
        """All of them."""
        return (*self.joined, *self.record, *self.answer)

    def row(self, record: Record, joined: Mapping[str, Any] | None) -> list[Any]:
        """Return the values of one row: empty ones where the joined table has no such row."""
        row = [None if joined is None else joined.get(column.source) for column in self.joined]
        row += [getattr(record, column.source) for column in self.record]
        if self.answer:
            fields = answer_fields(record.answer)
            row += [fields.get(column.source) for column in self.answer]
        return row


def layout(
    *,
    joined: Sequence[Column] = (),
    fields: Sequence[str] = (),
    schema: bytes | None = None,
    vectors: bool = False,
) -> Layout:
    """Return the columns of a table: ``vectors`` where requests are for embeddings, ``fields`` before ``schema``."""
    taken = {column.name for column in joined}
    record = []
    for name in NAMES:
        if name != _VECTOR or vectors:
            free = _free(name, taken, "vbatch_")
            kind = Kind.VECTOR if name == _VECTOR else Kind.INTEGER if name in NUMBERS else Kind.TEXT
            record.append(Column(name=free, source=name, kind=kind))
    kinds = dict.fromkeys(fields, Kind.ANY) if fields else {} if schema is None else schema_fields(schema)
    answer = [
        Column(name=_free(name, taken, "answer_"), source=name, kind=kind) for name, kind in kinds.items()
    ]
    return Layout(joined=tuple(joined), record=tuple(record), answer=tuple(answer))


def schema_fields(schema: bytes) -> dict[str, Kind]:
    """Return the fields of the object that a JSON schema describes; none where it describes something else."""
    document = decode(schema)
    properties = document.get("properties") if isinstance(document, dict) else None
    if not isinstance(properties, dict):
        return {}
    return {name: _kind(found) for name, found in properties.items()}


def enum_of(schema: bytes, field: str | None) -> tuple[str, list[str]] | None:
    """Return the field of a schema whose values are given ones, and these; ``field`` or the only such one."""
    document = decode(schema)
    properties = document.get("properties") if isinstance(document, dict) else None
    found = {
        name: [value for value in each["enum"] if isinstance(value, str)]
        for name, each in (properties if isinstance(properties, dict) else {}).items()
        if isinstance(each, dict) and isinstance(each.get("enum"), list) and field in (None, name)
    }
    return next(iter(found.items())) if len(found) == 1 else None


def answer_fields(answer: str | None) -> Mapping[str, Any]:
    """Return the fields of an answer that is a JSON object, also within a fence of Markdown; else none."""
    if answer is None:
        return {}
    fence = _FENCE.fullmatch(answer)
    text = fence[1] if fence is not None else answer
    document = decoded(text) if text.lstrip().startswith("{") else None
    return document if isinstance(document, dict) else {}


def _kind(schema: Any) -> Kind:
    given = schema.get("type") if isinstance(schema, dict) else None
    if isinstance(given, list):
        given = (
            next(iter(without), None)
            if len(without := [each for each in given if each != "null"]) == 1
            else None
        )
    return _KINDS.get(given, Kind.ANY) if isinstance(given, str) else Kind.ANY


def _free(name: str, taken: set[str], prefix: str) -> str:
    """Return a name that no column has yet, and take it."""
    while name in taken:
        name = prefix + name
    taken.add(name)
    return name


def unknown_fields(fields: Collection[str]) -> list[str]:
    """Return the names that no column can have: empty ones."""
    return [name for name in fields if not name.strip()]
