"""The rollback journal beside a SQLite file: whether it belongs to that file.

A process that was killed in a transaction leaves its journal, and the next one to open the database writes the pages in
it back. Beside a file that was put there since, a backup say, these are pages of another database, and damage it.
"""

from __future__ import annotations

import os
import struct
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

# sqlite.org/fileformat2.html, 1.3 (the file's header) and 3 (the journal).
_MAGIC = bytes.fromhex("d9d505f920a163d7")
_HEADER = struct.Struct(">IIIII")  # records, nonce, pages before the transaction, sector size, page size
_ALL = 0xFFFFFFFF  # records up to the end of the file
_COUNTER = slice(24, 28)  # of changes to the database, in its first page


def of(path: Path) -> Path:
    """Return where the journal of a database is."""
    return path.with_name(f"{path.name}-journal")


def is_foreign(path: Path) -> bool:
    """Whether the journal beside a database was begun by another one, so that SQLite must not use it.

    It holds the first page as it was before the transaction, and the database counts its transactions there: one that
    is neither of this number nor of the next is not of this file. False where that is unknown.
    """
    journal = of(path)
    with suppress(OSError, struct.error, ValueError):
        if (before := _state(journal)) is None:
            return False
        with journal.open("rb") as stream:
            counted = next((_counter(page) for page in _first_pages(stream)), None)
        if counted is None:
            return False
        there = _counter(_begin_of(path))
        return there not in (counted, (counted + 1) & _ALL) and _state(journal) == before
    return False


def _state(journal: Path) -> tuple[int, int, int] | None:
    """Return what changes with each transaction; None without a journal. Raises OSError."""
    try:
        found = journal.stat()
    except FileNotFoundError:
        return None
    return (found.st_ino, found.st_size, found.st_mtime_ns) if found.st_size else None


def _first_pages(stream: BinaryIO) -> Iterator[bytes]:
    """Yield the begin of the database's first page as often as it is in the journal."""
    end = os.fstat(stream.fileno()).st_size
    at = 0
    while at < end:
        stream.seek(at)
        if stream.read(len(_MAGIC)) != _MAGIC:
            return
        records, _, _, sector, page = _HEADER.unpack(stream.read(_HEADER.size))
        if not (sector and page):
            return
        at += sector
        size = 4 + page + 4  # number, content, checksum
        for _ in range((end - at) // size if records == _ALL else records):
            stream.seek(at)
            (number,) = struct.unpack(">I", stream.read(4))
            if number == 1:
                yield stream.read(_COUNTER.stop)
            at += size
        at = -(-at // sector) * sector


def _counter(page: bytes) -> int:
    return int(struct.unpack(">I", page[_COUNTER])[0])


def _begin_of(path: Path) -> bytes:
    """Read the begin of a database in another process: closing it here would drop this process's locks on it."""
    command = ["head", "-c", str(_COUNTER.stop), "--", os.fspath(path)]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, check=False).stdout
