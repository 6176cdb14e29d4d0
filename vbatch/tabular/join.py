"""Give each request its row of a table, by the custom_id: from a column of the table, or from the row's number."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any, Self

from vbatch.tabular.columns import Column, Kind
from vbatch.tabular.lookup import Lookup
from vbatch.tabular.read import Row, Table
from vbatch.tabular.templates import no_such_column, shown

Cells = Mapping[str, Any]
Open = Callable[[], AbstractContextManager[Table]]
CUSTOM_ID = "custom_id"

_LOOK = 1000  # rows by which the type of a column is known


@dataclass(frozen=True, slots=True)
class Key:
    """What the custom_id of a row is: the text of a column, or the row's number, as ``vbatch make`` has it."""

    column: str | None

    def of(self, table: Table, row: Row, number: int) -> str:
        """Return it. Raises TableError for a row without that column."""
        if self.column is None:
            return str(number)
        try:
            value = row.cells[self.column]
        except KeyError:
            raise table.bad(row.line, f"no {self.column!r}", hint="--on COLUMN") from None
        return value if isinstance(value, str) else shown(value)


class Join:
    """The rows of a table by custom_id. ``missing`` counts the requests that have none."""

    def __init__(self, open_table: Open, *, on: str | None) -> None:
        self._open = open_table
        self.columns, self._key = _look(open_table, on)
        self._rows = Lookup(self._keyed)
        self.missing = 0

    def __enter__(self) -> Self:
        self._rows.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        self._rows.__exit__()

    @property
    def is_indexed(self) -> bool:
        """Whether the table has another order than the requests."""
        return self._rows.is_indexed

    def row(self, custom_id: str) -> Cells | None:
        """Return the cells of the row with this custom_id, the first where there are several; None without one."""
        found = self._rows.get(custom_id)
        self.missing += found is None
        return found

    @contextmanager
    def _keyed(self) -> Iterator[Iterator[tuple[str, Cells]]]:
        with self._open() as table:
            yield (
                (self._key.of(table, row, number), dict(row.cells))
                for number, row in enumerate(table.rows, 1)
            )


def _look(open_table: Open, on: str | None) -> tuple[tuple[Column, ...], Key]:
    """Return the columns of a table and what its rows are joined by. Raises TableError without that column."""
    with open_table() as table:
        names: dict[str, Kind]
        if table.columns is not None:
            typed = table.unit == "row"  # Parquet
            first = list(islice(table.rows, _LOOK)) if typed else []
            names = {name: _kind(first, name) if typed else Kind.TEXT for name in table.columns}
        else:
            names = {name: Kind.ANY for row in table.rows for name in row.cells}  # each row names its own
        if on is not None and on not in names:
            raise no_such_column(on, names, option="--on", where=table.name)
    column = on if on is not None else CUSTOM_ID if CUSTOM_ID in names else None
    return tuple(Column(name=name, source=name, kind=kind) for name, kind in names.items()), Key(column)


def _kind(first: Sequence[Row], name: str) -> Kind:
    """Return what a typed column holds, by its first value."""
    match next((row.cells[name] for row in first if row.cells[name] is not None), None):
        case bool():
            return Kind.BOOLEAN
        case int():
            return Kind.INTEGER
        case float():
            return Kind.NUMBER
        case str():
            return Kind.TEXT
    return Kind.ANY
