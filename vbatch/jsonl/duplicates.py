"""Find a custom_id that is used on two lines, among millions, in flat memory.

Kept of each id are 128 bits of keyed hash and its line, in buckets that move to an unnamed temporary file when
they grow. Two different ids with the same 128 bits do not happen (10 million ids: a chance of 10**-25).
"""

from __future__ import annotations

import tempfile
from array import array
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO

BUCKETS = 256
SPILL_IDS = 500_000  # ids held in memory: 24 bytes each


class SeenIds:
    """The custom_ids of one file. ``add`` is on the hot path."""

    def __init__(self, *, spill_ids: int = SPILL_IDS) -> None:
        self._spill_at = spill_ids
        self._buckets = [array("q") for _ in range(BUCKETS)]
        self._held = 0
        self._file: IO[bytes] | None = None
        self._spilled: list[list[tuple[int, int]]] = [[] for _ in range(BUCKETS)]
        self._stack = ExitStack()

    def add(self, custom_id: str, line: int) -> None:
        """Record one id."""
        key = hash(custom_id)
        bucket = self._buckets[key & (BUCKETS - 1)]
        bucket.append(key)
        bucket.append(hash(custom_id[::-1]))
        bucket.append(line)
        self._held += 1
        if self._held >= self._spill_at:
            self._spill()

    def duplicates(self) -> Iterator[tuple[int, int]]:
        """Yield ``(line, earlier line)`` for each line whose id was already used on an earlier one."""
        for number in range(BUCKETS):
            bucket = self._whole(number)
            keys = bucket[0::3]
            if len(set(keys)) == len(keys):
                continue
            first: dict[tuple[int, int], int] = {}
            for key, other, line in zip(keys, bucket[1::3], bucket[2::3], strict=True):
                earlier = first.setdefault((key, other), line)
                if earlier != line:
                    yield line, earlier

    def close(self) -> None:
        """Remove the temporary file."""
        self._stack.close()

    def _spill(self) -> None:
        if self._file is None:
            self._file = self._stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        for number, bucket in enumerate(self._buckets):
            self._spilled[number].append((self._file.tell(), len(bucket) * bucket.itemsize))
            bucket.tofile(self._file)
            del bucket[:]
        self._held = 0

    def _whole(self, number: int) -> array[int]:
        bucket = array("q")
        for offset, size in self._spilled[number]:
            assert self._file is not None
            self._file.seek(offset)
            bucket.frombytes(self._file.read(size))
        bucket.extend(self._buckets[number])
        return bucket
