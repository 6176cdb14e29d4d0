"""Compressed input: the whole text, or an error; never a part of it for the whole."""

from __future__ import annotations

import gzip
import io
from collections.abc import Callable

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from vbatch.batches.unpacking import unpacked
from vbatch.errors import InputUnreadable

LINES = st.lists(
    st.binary(max_size=60).map(lambda text: text.replace(b"\n", b" ") + b"\n"), min_size=1, max_size=12
)
SKIPPABLE = b"\x50\x2a\x4d\x18\x03\x00\x00\x00abc"


def zstd_in_blocks(lines: list[bytes]) -> bytes:
    """Return one frame with a block for each line, so that a cut between blocks leaves whole lines."""
    compressor = zstandard.ZstdCompressor().compressobj()
    blocks = [
        compressor.compress(line) + compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK) for line in lines
    ]
    return b"".join(blocks) + compressor.flush()


def gzip_of(lines: list[bytes]) -> bytes:
    return gzip.compress(b"".join(lines))


def text_of(packed: bytes, size: int = 1 << 20) -> bytes:
    stream, _ = unpacked(io.BytesIO(packed), "prompts.jsonl")
    return b"".join(iter(lambda: stream.read(size), b""))


PACKED = pytest.mark.parametrize("pack", [zstd_in_blocks, gzip_of])


@PACKED
@given(frames=st.lists(LINES, min_size=1, max_size=3), size=st.integers(1, 200))
def test_every_frame_is_read_in_whatever_pieces(
    pack: Callable[[list[bytes]], bytes], frames: list[list[bytes]], size: int
) -> None:
    whole = b"".join(line for frame in frames for line in frame)
    packed = b"".join(map(pack, frames))
    assert text_of(packed, size) == whole
    if pack is zstd_in_blocks:
        assert text_of(SKIPPABLE + packed + SKIPPABLE, size) == whole


@PACKED
@given(lines=LINES, data=st.data())
def test_what_is_cut_off_is_no_whole_file(
    pack: Callable[[list[bytes]], bytes], lines: list[bytes], data: st.DataObject
) -> None:
    """Wherever the cut is. Mutant: zstandard's own reader, to which a cut between two blocks is an end."""
    packed = pack(lines)
    cut = data.draw(st.integers(4, len(packed) - 1))
    with pytest.raises(InputUnreadable, match=r"ends too early|is damaged"):
        text_of(packed[:cut])


@PACKED
def test_bytes_behind_the_end_are_damage(pack: Callable[[list[bytes]], bytes]) -> None:
    with pytest.raises(InputUnreadable, match="is damaged"):
        text_of(pack([b"a\n"]) + b"garbage")


def test_a_small_archive_of_a_huge_text_is_read_in_pieces() -> None:
    """Mutant: a read that returns more than was asked for."""
    packed = zstandard.compress(b"\n" * (100 << 20))
    stream, _ = unpacked(io.BytesIO(packed), "prompts.jsonl")
    sizes = {len(block) for block in iter(lambda: stream.read(1 << 20), b"")}
    assert sizes == {1 << 20}
