"""Read a table of any size row by row, of whatever kind it is: csv, tsv, JSON Lines, Parquet, lines of text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import PurePath
from typing import Any, BinaryIO

from vbatch.errors import TableError
from vbatch.tabular import read_csv, read_jsonl, read_parquet
from vbatch.tabular.read_text import BadText, Beginning, Readable, text_lines

LINE = "line"  # the one column of a text
MAGIC = b"PAR1"


class Format(StrEnum):
    """The kinds of tables."""

    CSV = "csv"
    TSV = "tsv"
    JSONL = "jsonl"
    PARQUET = "parquet"
    TEXT = "text"


_SUFFIXES = {
    ".csv": Format.CSV,
    ".tsv": Format.TSV,
    ".tab": Format.TSV,
    ".jsonl": Format.JSONL,
    ".ndjson": Format.JSONL,
    ".parquet": Format.PARQUET,
    ".pq": Format.PARQUET,
    ".txt": Format.TEXT,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row: the line on which it begins (of a Parquet file its number), and its cells by column."""

    line: int
    cells: Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table that can be read once.

    ``columns`` are those that every row has, None where each row names its own. ``unit`` is what a row's place counts.
    """

    name: str
    columns: Sequence[str] | None
    rows: Iterator[Row]
    unit: str = "line"

    def bad(self, line: int, what: str, *, hint: str | None = None) -> TableError:
        """Return the error of a row."""
        return TableError(f"{self.name}, {self.unit} {line:,}: {what}", hint=hint)


def format_of(name: str) -> Format | None:
    """Return the kind of table that a file name shows, also where it was compressed; None for no known one."""
    path = PurePath(name)
    if path.suffix.lower() in (".gz", ".gzip", ".zst", ".zstd"):
        path = path.with_suffix("")
    return _SUFFIXES.get(path.suffix.lower())


def read_table(
    stream: Readable,
    name: str,
    *,
    kind: Format | None = None,
    separator: str | None = None,
    seekable: AbstractContextManager[BinaryIO] | None = None,
) -> Table:
    """Return the table of an open stream; without a ``kind``, by its name and then by its first bytes.

    ``seekable`` opens the same bytes again for a kind that is not read from its beginning; without it such a stream is
    copied to an unnamed temporary file. Raises TableError, also while the rows are read, and ConfigError without the
    package that a kind needs.
    """
    beginning = Beginning(stream)
    kind = kind or format_of(name) or _recognised(beginning.first)
    if kind is Format.PARQUET or beginning.first.startswith(MAGIC):
        names, numbered = read_parquet.read(beginning, name, seekable)
        rows = (Row(line=at, cells=cells) for at, cells in numbered)
        return Table(name=name, columns=names, rows=rows, unit="row")
    if beginning.first.startswith(b"PK\x03\x04"):
        raise TableError(f"{name} is an Excel file or a zip archive", hint="save it as CSV (UTF-8)")
    lines = _lines(beginning, name)
    if kind is Format.TEXT:
        return Table(name=name, columns=(LINE,), rows=_text_rows(lines))
    found: Iterator[tuple[int, Mapping[str, Any]]]
    columns: Sequence[str] | None
    if kind is Format.JSONL:
        columns, found = None, read_jsonl.rows(lines, name)
    else:
        given = separator or ("\t" if kind is Format.TSV else None)
        columns, found = read_csv.read(lines, name, separator=given)
    return Table(name=name, columns=columns, rows=(Row(line=at, cells=cells) for at, cells in found))


def _recognised(first: bytes) -> Format:
    """Return what the first bytes show: objects of JSON, or else a table of cells."""
    return Format.JSONL if first.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] in (b"{", b"[") else Format.CSV


def _lines(beginning: Beginning, name: str) -> Iterator[str]:
    try:
        yield from text_lines(beginning)
    except BadText as error:
        raise TableError(f"{name}, line {error.line:,}: {error.what}", hint=error.hint) from None


def _text_rows(lines: Iterator[str]) -> Iterator[Row]:
    """Yield the lines of a text that are not blank."""
    for number, line in enumerate(lines, 1):
        text = line.rstrip("\r\n")
        if text.strip():
            yield Row(line=number, cells={LINE: text})
