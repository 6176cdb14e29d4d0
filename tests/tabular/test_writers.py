"""Writers of tables, row by row."""

from __future__ import annotations

import csv
import gc
import io

import pyarrow.parquet
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbatch.tabular import parquet
from vbatch.tabular.columns import Column, Kind
from vbatch.tabular.parquet import Parquet
from vbatch.tabular.writers import Csv, Text

CELL = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def columns(*names: str, kind: Kind = Kind.TEXT) -> list[Column]:
    return [Column(name=name, source=name, kind=kind) for name in names]


@given(st.lists(st.tuples(CELL, CELL), max_size=5))
def test_csv_is_read_back_as_it_was(rows: list[tuple[str, str]]) -> None:
    """Mutant: a cell with a lone carriage return that is not quoted."""
    written = io.BytesIO()
    writer = Csv(written.write, columns("a", "b"), raw=True)
    for row in rows:
        writer.add(row)
    writer.close()
    found = list(csv.reader(io.StringIO(written.getvalue().decode(), newline="")))
    assert found == [["a", "b"], *map(list, rows)]


@given(st.lists(CELL, max_size=5))
def test_text_has_a_line_for_each_row(answers: list[str]) -> None:
    written = io.BytesIO()
    writer = Text(written.write, raw=False)
    for answer in answers:
        writer.add([answer])
    lines = written.getvalue().decode().split("\n")
    assert lines.pop() == ""
    back = {"n": "\n", "r": "\r", "\\": "\\"}
    for line, answer in zip(lines, answers, strict=True):
        parts = iter(line)
        assert "".join(back[next(parts)] if part == "\\" else part for part in parts) == answer


def test_a_whole_number_of_any_length_in_parquet() -> None:
    """JSON has them. Mutant: ``float()`` alone, which raises OverflowError and ends the table."""
    written = io.BytesIO()
    writer = Parquet(written.write, [*columns("n", kind=Kind.INTEGER), *columns("x", kind=Kind.NUMBER)])
    for value in (10**400, -(10**400), 7):
        writer.add([value, value])
    writer.close()
    assert pyarrow.parquet.read_table(written).to_pydict() == {"n": [None, None, 7], "x": [None, None, 7.0]}


def test_parquet_in_groups_that_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """By rows, and by text. Values of another type than the column's are left empty, not refused."""
    monkeypatch.setattr(parquet, "GROUP", 10)
    monkeypatch.setattr(parquet, "GROUP_BYTES", 1000)
    written = io.BytesIO()
    writer = Parquet(written.write, [*columns("a"), *columns("n", kind=Kind.INTEGER)])
    for number in range(25):
        writer.add(["x", number])
    writer.add(["y" * 2000, "no number"])
    writer.add(["z", 1 << 70])
    writer.close()
    file = pyarrow.parquet.ParquetFile(written)
    assert [file.metadata.row_group(n).num_rows for n in range(file.num_row_groups)] == [10, 10, 6, 1]
    assert file.read()["n"].to_pylist() == [*range(25), None, None]


def test_parquet_that_is_given_up_writes_nothing_more() -> None:
    """Mutant: pyarrow writes the end of the file when it lets go of it, into a file that is closed."""
    written: list[bytes] = []
    writer = Parquet(written.append, columns("a"))
    writer.add(["x"])
    before = len(written)
    writer.drop()
    del writer
    gc.collect()
    assert len(written) == before
