"""Tables of every kind become the same rows; what cannot be read is named by its line."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbatch.errors import TableError
from vbatch.tabular import read_text
from vbatch.tabular.read import Format, format_of, read_table

ROWS = [
    {"id": "a", "text": 'he said "hi", twice;\tok'},
    {"id": "b", "text": "two\nlines\r\nand a third"},
    {"id": "", "text": "=1+1 äöü 日本 \u2028"},
]


def rows(data: bytes, name: str = "t.csv", **options: Any) -> list[tuple[int, dict[str, Any]]]:
    return [(row.line, dict(row.cells)) for row in read_table(io.BytesIO(data), name, **options).rows]


def written(separator: str = ",", *, end: str = "\r\n") -> str:
    text = io.StringIO()
    table = csv.DictWriter(text, ["id", "text"], delimiter=separator, lineterminator=end)
    table.writeheader()
    table.writerows(ROWS)
    return text.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
def test_the_same_rows_in_every_dialect(separator: str, encoding: str) -> None:
    """Mutants: the mark of UTF-8 stays in the first column's name; UTF-16 without a mark is taken for UTF-8."""
    assert rows(written(separator).encode(encoding)) == [(2, ROWS[0]), (3, ROWS[1]), (6, ROWS[2])]


def test_what_spreadsheets_write() -> None:
    """Mutant: Excel's ``sep=`` line is taken for the header."""
    assert rows(b"sep=;\na;b\n1,5;2\n\n3;4") == [(3, {"a": "1,5", "b": "2"}), (5, {"a": "3", "b": "4"})]
    assert rows(b'"a,b";c\n1;2\n') == [(2, {"a,b": "1", "c": "2"})]
    assert rows(b"text\nx\n") == [(2, {"text": "x"})]


@given(
    st.lists(
        st.lists(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")), min_size=2, max_size=2
        ),
        max_size=8,
    )
)
def test_what_the_csv_module_writes_is_read_back(cells: list[list[str]]) -> None:
    text = io.StringIO()
    csv.writer(text).writerows([["first", "second"], *cells])
    found = [list(row.values()) for _, row in rows(text.getvalue().encode())]
    assert found == cells


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"a,b\n1,2\n3\n", "t.csv, line 3: 1 cell, where the header has 2 columns"),
        (b'a,b\n1,"2\n\n', "t.csv, line 2: a quoted cell begins in this row and does not end"),
        (b'a,b\n1,"2"x\n', "t.csv, line 2: text follows the quote that ends a cell"),
        (b"a,b\r1,2\r", "t.csv, line 1: a carriage return stands in the middle"),
        (b"a,b\n1,\xe4\n", "t.csv, line 2: not UTF-8 (at byte 3 of the line)"),
        (b"a,a\n1,2\n", "t.csv has several columns called 'a'"),
        (b"", "t.csv is empty"),
        (b"PK\x03\x04xl/", "t.csv is an Excel file or a zip archive"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(data: bytes, said: str) -> None:
    """Mutant: a short row is filled with nothing."""
    with pytest.raises(TableError) as raised:
        rows(data)
    assert raised.value.message == said
    assert raised.value.hint


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be"])
@pytest.mark.parametrize(("damage", "said"), [("half", "illegal"), ("cut", "truncated data")])
def test_utf16_that_is_none_is_an_error(encoding: str, damage: str, said: str) -> None:
    """Mutant: what is no UTF-16 becomes U+FFFD, and a row has another text than its file."""
    data = ("id,text\n" + "x,good 😀\n" * 100_000).encode(encoding)  # the damage is beyond the first block
    if damage == "half":
        data += "y,\ud83d!\nz,z\n".encode(
            "utf-16-be" if encoding == "utf-16-be" else "utf-16-le", "surrogatepass"
        )
    else:
        data += b"y"
    with pytest.raises(TableError, match=rf"line 100,002: not UTF-16 \(.*{said}") as raised:
        rows(data)
    assert "iconv -c" in str(raised.value.hint)


def test_json_lines() -> None:
    data = "\n".join(map(json.dumps, ROWS)).encode()
    assert [row for _, row in rows(data, "t.jsonl")] == ROWS
    assert [row for _, row in rows(data, "the input")] == ROWS
    for bad, said in [
        (b'{"a": 1}\n{"a": }\n', "line 2: this is not JSON"),
        (b'{"a": 1}\n[1]\n', "line 2: not an object"),
        (b'[{"a": 1}]', "is one array of JSON"),
        (b'[\n{"a": 1}\n]', "is one array of JSON"),
    ]:
        with pytest.raises(TableError, match=said):
            rows(bad, "t.jsonl")


def test_lines_of_text() -> None:
    assert rows(b"one\r\n\n  two, three\n", "t.txt") == [(1, {"line": "one"}), (3, {"line": "  two, three"})]
    assert rows(b"a\nb", "the input", kind=Format.TEXT) == [(1, {"line": "a"}), (2, {"line": "b"})]


def test_a_line_without_an_end_is_not_held(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: ``readline`` without a limit."""
    monkeypatch.setattr(read_text, "LINE_LIMIT", 1000)
    with pytest.raises(TableError, match="line 2: longer than"):
        rows(b"a,b\n" + b"x" * 5000)


def test_parquet(tmp_path: Path) -> None:
    """From a file, and from a stream that cannot be rewound."""
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "t.parquet"
    parquet.write_table(arrow.Table.from_pylist([row | {"n": at} for at, row in enumerate(ROWS)]), path)
    expected = [(at + 1, row | {"n": at}) for at, row in enumerate(ROWS)]
    assert rows(path.read_bytes(), "the input") == expected
    assert rows(path.read_bytes(), str(path), seekable=path.open("rb")) == expected
    with pytest.raises(TableError, match="not a whole Parquet file"):
        rows(path.read_bytes()[:-20], "t.parquet")


@pytest.mark.parametrize(
    ("name", "kind"),
    [("a.csv", Format.CSV), ("A.TSV.gz", Format.TSV), ("x.jsonl.zst", Format.JSONL), ("x.dat", None)],
)
def test_names_show_the_kind(name: str, kind: Format | None) -> None:
    assert format_of(name) is kind
