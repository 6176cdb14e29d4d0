"""Where requests come from: a file on disk, or a stream that can be read only once."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from vbatch.batches.paths import settled
from vbatch.batches.unpacking import unpacked
from vbatch.errors import InputUnreadable


@dataclass(frozen=True, slots=True, kw_only=True)
class InputFile:
    """An input of ``submit``; ``name`` is what messages call it.

    ``path`` is the absolute path of a file that stays; None for standard input, a pipe of the shell (``<(…)``)
    and a device. ``size`` is that of a regular file, in bytes; None for what can be read only once.
    """

    name: str
    path: Path | None
    size: int | None
    source: Callable[[], AbstractContextManager[BinaryIO]]

    @classmethod
    def at(cls, path: Path) -> InputFile:
        """Return the input at a path. Raises InputUnreadable."""
        try:
            status = path.stat()
        except OSError as error:
            raise _unreadable(path, error) from None
        if stat.S_ISDIR(status.st_mode):
            raise InputUnreadable(f"{path} is a folder", hint=f"ls {path}/*.jsonl")
        return cls(
            name=str(path),
            path=None if stat.S_ISFIFO(status.st_mode) else _lasting(path),
            size=status.st_size if stat.S_ISREG(status.st_mode) else None,
            source=partial(_opened, path),
        )

    @classmethod
    def of(cls, stream: BinaryIO) -> InputFile:
        """Return a stream without a name, such as standard input."""
        return cls(name="the input", path=None, size=None, source=lambda: nullcontext(stream))

    @contextmanager
    def open(self) -> Iterator[InputStream]:
        """Open it for reading. Raises InputUnreadable with the reason, also while it is read."""
        with self.source() as stream:
            yield InputStream(stream, self.name)


class InputStream:
    """An open input, unpacked where it is compressed, whose faults are reported as the input's.

    ``packed`` is the command that its compression is named after, None for plain text.
    """

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._raw = stream
        self._name = name
        self._before = _version(stream)
        self._bytes = _Named(stream, name)
        self._stream, self.packed = unpacked(self._bytes, name)

    @property
    def consumed(self) -> int:
        """How many bytes of the input itself were read so far, compressed as it is."""
        return self._bytes.done

    def read(self, size: int) -> bytes:
        """Return the next bytes of the text. Raises InputUnreadable."""
        return self._stream.read(size)

    def check_unchanged(self) -> None:
        """Raise InputUnreadable for a file that another process wrote into meanwhile."""
        if _version(self._raw) != self._before:
            raise InputUnreadable(
                f"{self._name} was changed while it was being read; nothing was stored",
                hint="submit it again when it is finished",
            )


class _Named:
    """A stream whose faults are reported with the place."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self.done = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes. Raises InputUnreadable with the place."""
        try:
            block = self._stream.read(size)
        except OSError as error:
            raise InputUnreadable(
                f"{self._name} cannot be read beyond byte {self.done:,}: {error.strerror}",
                hint="nothing was stored; journalctl -k shows the faults of a disk",
            ) from None
        self.done += len(block)
        return block


def _lasting(path: Path) -> Path | None:
    place = settled(path)
    return None if any(place.is_relative_to(folder) for folder in ("/dev", "/proc")) else place


def _opened(path: Path) -> BinaryIO:
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: OSError) -> InputUnreadable:
    return InputUnreadable(f"{path} cannot be read: {error.strerror}", hint=f"ls -l {path}")


def _version(stream: BinaryIO) -> tuple[int, int] | None:
    """Return size and time of change of a regular file; None for what has neither, as a stream in memory."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
