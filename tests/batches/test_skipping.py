"""The lines that are left out of a batch: copied byte for byte, whatever their size."""

from __future__ import annotations

import hashlib
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.rigs.lines import line
from vbatch import batches
from vbatch.batches import InputFile, SubmitOptions, skipping
from vbatch.errors import InputUnreadable
from vbatch.jsonl.reading import LINE_LIMIT
from vbatch.store import Store


@given(
    lines=st.lists(st.binary(max_size=9).map(lambda text: text.replace(b"\n", b"\r")), min_size=1),
    size=st.integers(1, 7),
    data=st.data(),
)
def test_exactly_the_chosen_lines_are_copied(lines: list[bytes], size: int, data: st.DataObject) -> None:
    """Mutants: white space stripped; a line that crosses a block's end cut."""
    lines = [piece for piece in lines if not piece.startswith(b"\xef")]  # no byte order mark
    bad = frozenset(data.draw(st.sets(st.integers(1, len(lines) + 1))))
    content = b"".join(piece + b"\n" for piece in lines)
    source, written = io.BytesIO(content), io.BytesIO()
    digest = skipping._copy(lambda _size: source.read(size), bad, written.write)
    expected = b"".join(piece + b"\n" for number, piece in enumerate(lines, 1) if number in bad)
    assert written.getvalue() == expected
    assert digest == hashlib.sha256(content).hexdigest()


def test_a_line_that_is_too_long_is_written_too(store: Store, tmp_path: Path) -> None:
    """Mutant: it is counted among the lines that were written, and is not there."""
    source = tmp_path / "prompts.jsonl"
    long = b'{"x": "' + b"y" * LINE_LIMIT + b'"}\n'
    source.write_bytes(line("a") + long + line("b"))
    done = batches.submit(store, InputFile.at(source), SubmitOptions(skip_invalid=True))
    assert (done.batch.counts.total, done.batch.skipped) == (2, 1)
    assert done.invalid == tmp_path / "prompts.invalid.jsonl"
    assert done.invalid.read_bytes() == long


def test_lines_of_a_file_that_was_changed_are_not_taken_for_the_bad_ones(
    store: Store, tmp_path: Path
) -> None:
    """Mutant: line numbers of the old file, bytes of the new one."""
    source = tmp_path / "prompts.jsonl"
    source.write_bytes(line("a") + b"nonsense\n")
    done = batches.submit(store, InputFile.at(source), SubmitOptions(skip_invalid=True))
    source.write_bytes(line("a") + line("b"))
    with pytest.raises(InputUnreadable, match="is accepted, but"):
        skipping.write_lines(
            InputFile.at(source), frozenset({2}), tmp_path / "other.invalid.jsonl", batch=done.batch
        )
    assert not list(tmp_path.glob("*other*"))
