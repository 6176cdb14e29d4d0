"""Find a custom_id that is used on two lines, among millions, in flat memory.

Kept of each id are 128 bits of keyed hash and its line, which move to an unnamed temporary file, in buckets, when they
grow. Two different ids with the same 128 bits do not happen (10 million ids: a chance of 10**-25).
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import pairwise
from typing import IO

BUCKETS = 256
SPILL_IDS = 500_000  # ids held in memory: 24 bytes each
TOGETHER = (
    2048  # ids hashed at once: one by one they miss the processor's cache, which the lines pass through
)


class SeenIds:
    """The custom_ids of one file."""

    def __init__(self, *, spill_ids: int = SPILL_IDS) -> None:
        self._spill_at = spill_ids
        self._ids: list[str] = []
        self._lines: list[int] = []
        self._held = array("q"), array("q"), array("q")  # hashes, hashes of the ids backwards, lines
        self._file: IO[bytes] | None = None
        self._spilled: list[list[tuple[int, int]]] = [[] for _ in range(BUCKETS)]
        self._stack = ExitStack()

    def add_all(self, custom_ids: Sequence[str], first: int) -> None:
        """Record the ids of lines that follow each other."""
        self._ids += custom_ids
        self._lines.extend(range(first, first + len(custom_ids)))
        if len(self._ids) >= TOGETHER:
            self._hash()

    def duplicates(self) -> Iterator[tuple[int, int]]:
        """Yield ``(line, earlier line)`` for each line whose id was already used on an earlier one."""
        self._hash()
        if self._file is None:
            yield from _repeated(*self._held)
            return
        self._spill()
        for spilled in self._spilled:
            bucket = array("q")
            for offset, size in spilled:
                self._file.seek(offset)
                bucket.frombytes(self._file.read(size))
            yield from _repeated(bucket[0::3], bucket[1::3], bucket[2::3])

    def close(self) -> None:
        """Remove the temporary file."""
        self._stack.close()

    def _hash(self) -> None:
        ids, (keys, others, lines) = self._ids, self._held
        keys.extend(map(hash, ids))
        others.extend([hash(custom_id[::-1]) for custom_id in ids])
        lines.extend(self._lines)
        self._ids, self._lines = [], []
        if len(keys) >= self._spill_at:
            self._spill()

    def _spill(self) -> None:
        if self._file is None:
            self._file = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        buckets = [array("q") for _ in range(BUCKETS)]
        for found in zip(*self._held, strict=True):
            buckets[found[0] & (BUCKETS - 1)].extend(found)
        for spilled, bucket in zip(self._spilled, buckets, strict=True):
            spilled.append((self._file.tell(), len(bucket) * bucket.itemsize))
            bucket.tofile(self._file)
        for held in self._held:
            del held[:]


def _repeated(keys: array[int], others: array[int], lines: array[int]) -> Iterator[tuple[int, int]]:
    """Yield the line, and the first one, of each id that was there before."""
    if len(set(keys)) == len(keys):
        return
    suspected = {one for one, next_one in pairwise(sorted(keys)) if one == next_one}
    first: dict[tuple[int, int], int] = {}
    for key, other, line in zip(keys, others, lines, strict=True):
        if key in suspected and (earlier := first.setdefault((key, other), line)) != line:
            yield line, earlier
