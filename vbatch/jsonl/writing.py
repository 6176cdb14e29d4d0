"""Write a file so that it is either whole under its name, or not there.

Temporary name in the same folder, fsync, a link that cannot overwrite, fsync of the folder: without the first
fsync a renamed file was empty after a power cut, without the last it still had its temporary name (measured).
"""

from __future__ import annotations

import errno
import fcntl
import filecmp
import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

BUFFER = 1 << 20


SUFFIX = ".vbatch-tmp"


def temporary_name(path: Path, tag: str) -> Path:
    """Return the name under which a file is written before it is whole: recognisably ours, hidden, never too long."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]
    return path.with_name(f".{tag}.{digest}{SUFFIX}")


def second_name(path: Path, tag: str) -> Path:
    """Return the name under which a file appears beside another one that has its own."""
    return path.with_name(f"{path.stem}.{tag}{path.suffix}")


def abandoned(folder: Path) -> list[Path]:
    """Return the half-written files of ours in this folder that nobody writes any more."""
    return [path for path in sorted(folder.glob(f".*{SUFFIX}")) if not _is_locked(path)]


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # locked, gone, or not ours to open
        return True
    return False


class AtomicFile:
    """A file that is being written. ``path`` is where it will appear, and after that where it is."""

    def __init__(self, stream: BinaryIO, path: Path) -> None:
        self._stream = stream
        self.path = path

    def write(self, data: bytes) -> None:
        """Add to it. Raises OSError with its name."""
        try:
            self._stream.write(data)
        except OSError as error:
            raise _named(error, self.path) from None

    def sync(self) -> None:
        """Bring all of it to the disk. Raises OSError with its name."""
        try:
            self._stream.flush()
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise _named(error, self.path) from None


@contextmanager
def atomic_file(path: Path, *, tag: str) -> Iterator[AtomicFile]:
    """Open a file for writing that appears under its name, durably, when the block ends without an error.

    Nothing is overwritten. A file of the same bytes was written by an earlier try, and all is well; beside any
    other one the file appears with the tag in its name. Raises OSError when the disk refuses.
    """
    temporary = temporary_name(path, tag)
    stream = _locked(temporary)
    try:
        file = AtomicFile(stream, path)
        yield file
        file.sync()
        if not _appear(temporary, path):
            file.path = second_name(path, tag)
            if not _appear(temporary, file.path):
                raise FileExistsError(errno.EEXIST, "both names are taken by other files", str(file.path))
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        with suppress(OSError):  # what could not be written is told already, with its name
            stream.close()
    _sync_folder(path.parent)


def _named(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, os.strerror(error.errno or 0), str(path))


def _locked(path: Path) -> BinaryIO:
    """Open an empty file for us alone. Raises BlockingIOError while another process writes it.

    What a killed writer left is unlinked, never truncated: it may have its final name already, too.
    """
    while True:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except OSError as error:  # in words about the folder: nobody knows the temporary name
            raise _named(error, path.parent) from None
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_new(handle, path):
                return os.fdopen(os.dup(handle), "wb", buffering=BUFFER)
        finally:
            os.close(handle)


def _is_new(handle: int, path: Path) -> bool:
    """Whether this locked file is the one of that name, and empty; an old one loses the name."""
    try:
        ours = os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False
    if ours and os.fstat(handle).st_size > 0:
        path.unlink(missing_ok=True)
        return False
    return ours


def _appear(temporary: Path, path: Path) -> bool:
    """Give the file its name. False when another file has it."""
    try:
        os.link(temporary, path)
    except FileExistsError:
        return _same(temporary, path)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        if os.path.lexists(path):
            return _same(temporary, path)
        temporary.rename(path)
    return True


def _same(temporary: Path, path: Path) -> bool:
    """Whether a file of ours has the name already. What cannot be read, such as a link to nothing, is not ours."""
    try:
        return filecmp.cmp(temporary, path, shallow=False)
    except OSError:
        return False


# What link(2) says on file systems without hard links (FAT, some network shares): there a rename has to do, which
# would overwrite a file that appears in the very moment between.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        raise _named(error, folder) from None
    finally:
        os.close(handle)
