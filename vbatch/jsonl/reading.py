"""Cut a stream into lines, holding no more than a block and a line, with the digest of all bytes read."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Protocol

from vbatch.jsonl.formats import BOM, Foreign, recognise

BLOCK = 1 << 20  # bytes read at once
BLANK = b" \t\r"
LINE_LIMIT = 64 << 20  # bytes; a longer line is a file of another kind


class Stream(Protocol):
    """What lines are read from."""

    def read(self, size: int, /) -> bytes:
        """Return up to so many bytes, none at the end."""
        ...


class ForeignInput(Exception):
    """The stream holds something else than lines of requests."""

    def __init__(self, found: Foreign) -> None:
        self.found = found
        super().__init__(found.what)


class Overlong:
    """A line beyond the limit, which was skipped without being held."""


OVERLONG = Overlong()


class LineReader:
    """Iterates over ``(number, line)``: 1-based, without white space around it, blank lines left out.

    ``sha256`` and ``size`` are of every byte of the stream, once it has been read to its end; ``on_read`` is
    called with the size so far after each block; ``cut_off`` is the number of a last line that no line break
    ends, else None. With ``ahead``, a thread reads, and so unpacks, the next block: not for a
    pipe, which could keep it waiting.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        block: int = BLOCK,
        limit: int = LINE_LIMIT,
        on_read: Callable[[int], None] = lambda _size: None,
        ahead: bool = False,
    ) -> None:
        self._stream = stream
        self._ahead = ahead
        self._on_read = on_read
        self._block = block
        self._limit = limit
        self._digest = hashlib.sha256()
        self.size = 0
        self.cut_off: int | None = None

    @property
    def sha256(self) -> str:
        """The digest of what was read so far, in hexadecimal."""
        return self._digest.hexdigest()

    def _look_at_beginning(self, block: bytes) -> None:
        """Raise ForeignInput for a file of another kind."""
        found = recognise(block)
        if found is not None:
            raise ForeignInput(found)

    def _read(self, size: int) -> bytes:
        block = self._stream.read(size)
        self._digest.update(block)
        return block

    def _blocks_ahead(self) -> Iterator[bytes]:
        """Yield the blocks while a thread reads the next one. It has ended when this has."""
        with ThreadPoolExecutor(1, thread_name_prefix="reading") as thread:
            coming = thread.submit(self._read, self._block)
            while block := coming.result():
                coming = thread.submit(self._read, self._block)
                yield block

    def __iter__(self) -> Iterator[tuple[int, bytes | Overlong]]:
        for first, lines in self.blocks():
            yield from numbered(first, lines)

    def blocks(self) -> Iterator[tuple[int, list[bytes | Overlong]]]:
        """Yield the lines that end in a block, as they stand there, with the number of the first of them."""
        first = 1
        started: list[bytes] = []  # the pieces of a line whose end has not been read yet
        held = 0
        for block in self._blocks_ahead() if self._ahead else iter(partial(self._read, self._block), b""):
            if self.size == 0:
                self._look_at_beginning(block)
            *pieces, tail = (block.removeprefix(BOM) if self.size == 0 else block).split(b"\n")
            self.size += len(block)
            self._on_read(self.size)
            if pieces:
                started.append(pieces[0])
                held += len(pieces[0])
                pieces[0] = b"".join(started)
                lines: list[bytes | Overlong] = [*pieces]
                if self._limit < self._block:
                    lines = [line if len(line) <= self._limit else OVERLONG for line in pieces]
                if held > self._limit:
                    lines[0] = OVERLONG
                yield first, lines
                first += len(lines)
                started, held = [], 0
            held += len(tail)
            if held > self._limit:
                started = []  # it is skipped without being held
            elif tail:
                started.append(tail)
        if held > self._limit:
            yield first, [OVERLONG]
        elif line := b"".join(started).strip(BLANK):
            self.cut_off = first
            yield first, [line]


def numbered(first: int, lines: Iterable[bytes | Overlong]) -> Iterator[tuple[int, bytes | Overlong]]:
    """Yield lines without white space around them, with their numbers; blank ones are left out."""
    for number, line in enumerate(lines, first):
        if isinstance(line, Overlong):
            yield number, line
        elif text := line.strip(BLANK):
            yield number, text
