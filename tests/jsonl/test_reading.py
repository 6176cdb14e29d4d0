"""A stream is cut into the same lines whatever the size of its blocks, in memory that its size does not matter to."""

from __future__ import annotations

import gc
import hashlib
import io
import threading
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vbatch.jsonl import LineReader
from vbatch.jsonl.reading import OVERLONG

BLANK = b" \t\r"


class Trickle(io.RawIOBase):
    """A stream that gives less than it is asked for, as a pipe does."""

    def __init__(self, content: bytes, sizes: list[int]) -> None:
        self._content = io.BytesIO(content)
        self._sizes = iter(sizes)

    def read(self, size: int = -1) -> bytes:
        return self._content.read(min(size, next(self._sizes, size)))


@given(
    content=st.lists(
        st.sampled_from([b"\n", b"\r\n", b" ", b"\t", b"a", b"bc", b"\0", b"\xff", b"\xe2\x80\xa8"])
    ).map(lambda pieces: b"{}" + b"".join(pieces)),  # not a file of another kind, which is refused at once
    block=st.integers(1, 9),
    sizes=st.lists(st.integers(1, 5)),
    ahead=st.booleans(),
)
def test_blocks_do_not_matter(content: bytes, block: int, sizes: list[int], ahead: bool) -> None:
    sizes_read: list[int] = []
    reader = LineReader(Trickle(content, sizes), block=block, on_read=sizes_read.append, ahead=ahead)
    lines = list(reader)

    pieces = content.split(b"\n")
    expected = [(number, piece.strip(BLANK)) for number, piece in enumerate(pieces, start=1)]
    assert lines == [(number, piece) for number, piece in expected if piece]
    assert reader.size == len(content)
    assert reader.sha256 == hashlib.sha256(content).hexdigest()
    assert reader.cut_off == (len(pieces) if pieces[-1].strip(BLANK) else None)
    assert sizes_read == sorted(sizes_read)
    assert (sizes_read or [0])[-1] == len(content)


@given(lengths=st.lists(st.integers(0, 12)), block=st.integers(1, 30), ended=st.booleans())
def test_lines_beyond_the_limit_are_skipped_and_named(lengths: list[int], block: int, ended: bool) -> None:
    content = b"\n".join(b"x" * length for length in lengths) + (b"\n" if ended else b"")
    lines = list(LineReader(io.BytesIO(content), block=block, limit=8))
    assert [(number, OVERLONG if line is OVERLONG else len(line)) for number, line in lines] == [  # type: ignore[arg-type]
        (number, length if length <= 8 else OVERLONG)
        for number, length in enumerate(lengths, start=1)
        if length
    ]


def test_a_line_without_an_end_takes_no_memory() -> None:
    class Endless(io.RawIOBase):
        left = 64 << 20

        def read(self, size: int = -1) -> bytes:
            self.left -= size
            return b"x" * size if self.left >= 0 else b""

    tracemalloc.start()
    lines = list(LineReader(Endless(), block=1 << 16, limit=1 << 20))
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert lines == [(1, OVERLONG)]
    assert most < 4 << 20


@pytest.mark.parametrize("content", [b"", b"\n", b"\r\n\r\n", b"  "])
def test_nothing_to_read(content: bytes) -> None:
    reader = LineReader(io.BytesIO(content))
    assert list(reader) == []
    assert reader.cut_off is None


def test_a_fault_of_what_is_read_ahead_is_raised_and_the_thread_ends() -> None:
    """Mutant: what the thread raises is lost, and the file ends there."""

    class Broken:
        """Gives one block."""

        def __init__(self) -> None:
            self.blocks = [b"{}\n{}\n"]

        def read(self, _size: int, /) -> bytes:
            """Raise after the first block."""
            if self.blocks:
                return self.blocks.pop()
            raise OSError(5, "Input/output error")

    threads = threading.active_count()
    with pytest.raises(OSError, match="Input/output"):
        list(LineReader(Broken(), ahead=True))
    assert threading.active_count() == threads


def test_reading_ahead_ends_with_the_one_who_reads() -> None:
    threads = threading.active_count()
    lines = iter(LineReader(io.BytesIO(b"{}\n" * 100), block=30, ahead=True))
    next(lines)
    del lines
    gc.collect()
    assert threading.active_count() == threads
