"""Read csv and tsv: the separator is found by the header, and every row must have the header's columns.

A row that is longer or shorter than the header is refused, never filled: its cells may be those of other columns.
"""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

from vbatch.errors import TableError
from vbatch.tabular.read_text import LINE_LIMIT
from vbatch.text import count

SEPARATORS = ",;\t|"
_Rows = Iterator[tuple[int, Mapping[str, str]]]


def read(lines: Iterator[str], name: str, *, separator: str | None) -> tuple[Sequence[str], _Rows]:
    """Return the columns, and the rows with the line on which each begins. Raises TableError."""
    first = next(lines, "")
    skipped = 0
    if first.lower().startswith("sep=") and len(first.rstrip("\r\n")) == 5:  # Excel's own first line
        separator, first, skipped = separator or first[4], next(lines, ""), 1
    csv.field_size_limit(LINE_LIMIT)
    cells = _cells(chain([first] if first else [], lines), name, separator or _separator(first), skipped)
    _, columns = next(cells, (0, []))
    if not columns:
        raise TableError(f"{name} is empty", hint="the first line of a csv file names its columns")
    _check_header(columns, name)
    return columns, _rows(cells, name, columns)


def _separator(header: str) -> str:
    """Return the separator that the header has most often outside of quotes."""
    outside = "".join(header.split('"')[::2])
    return max(SEPARATORS, key=outside.count)


def _cells(lines: Iterator[str], name: str, separator: str, skipped: int) -> Iterator[tuple[int, list[str]]]:
    """Yield the rows that are not blank, each with its first line."""
    reader = csv.reader(lines, delimiter=separator, strict=True)
    while True:
        line = reader.line_num + skipped + 1
        try:
            row = next(reader, None)
        except csv.Error as fault:
            what, hint = _words(str(fault))
            raise TableError(f"{name}, line {line:,}: {what}", hint=hint) from None
        if row is None:
            return
        if row:
            yield line, row


def _words(fault: str) -> tuple[str, str]:
    """Return what the csv module found, in words, and what to do."""
    if "unexpected end of data" in fault or "field larger" in fault:
        return "a quoted cell begins in this row and does not end", 'a quote within a cell is doubled: ""'
    if "new-line character" in fault:
        return "a carriage return stands in the middle", "tr '\\r' '\\n' < FILE > fixed.csv"
    if "expected after" in fault:
        return "text follows the quote that ends a cell", 'a quote within a cell is doubled: ""'
    return fault, "--format, --separator"


def _check_header(columns: Sequence[str], name: str) -> None:
    doubled = [column for column, times in Counter(columns).items() if times > 1 and column]
    if doubled:
        raise TableError(
            f"{name} has several columns called {doubled[0]!r}", hint="rename one of them in the first line"
        )


def _rows(cells: Iterator[tuple[int, list[str]]], name: str, columns: Sequence[str]) -> _Rows:
    width = len(columns)
    for line, row in cells:
        if len(row) != width:
            found = f"{count(len(row), 'cell')}, where the header has {count(width, 'column')}"
            raise TableError(
                f"{name}, line {line:,}: {found}",
                hint="quote a cell that holds the separator, or name the separator: --separator ';'",
            )
        yield line, dict(zip(columns, row, strict=True))
