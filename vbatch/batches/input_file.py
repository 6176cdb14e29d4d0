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
    """An open input whose faults are reported as the input's."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._done = 0
        self._before = _version(stream)

    def read(self, size: int) -> bytes:
        """Return the next bytes. Raises InputUnreadable with the place."""
        try:
            block = self._stream.read(size)
        except OSError as error:
            raise InputUnreadable(
                f"{self._name} cannot be read beyond byte {self._done:,}: {error.strerror}",
                hint="nothing was stored; journalctl -k shows the faults of a disk",
            ) from None
        self._done += len(block)
        return block

    def check_unchanged(self) -> None:
        """Raise InputUnreadable for a file that another process wrote into meanwhile."""
        if _version(self._stream) != self._before:
            raise InputUnreadable(
                f"{self._name} was changed while it was being read; nothing was stored",
                hint="submit it again when it is finished",
            )


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
