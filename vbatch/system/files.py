"""Write a file so that it is either whole under its name, or not there; and lock one for as long as a process lives.

Temporary name in the same folder, fsync, the final name, fsync of the folder: without the first fsync a renamed
file was empty after a power cut, without the last it still had its temporary name (measured). An output gets its
name by a link, which cannot overwrite; a file of vbatch's own settings by a rename, which replaces the earlier one.
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

BUFFER = 1 << 20  # bytes
SUFFIX = ".vbatch-tmp"

# What link(2) says on file systems without hard links (FAT, some network shares): there a rename has to do, which
# would overwrite a file that appears in the very moment between.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}


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
    other one the file appears with the tag in its name. Raises OSError when the disk refuses, BlockingIOError
    while another process writes the same file.
    """
    temporary = temporary_name(path, tag)
    with _draft(temporary, path, mode=0o666) as file:
        yield file
        file.sync()
        if not _appear(temporary, path):
            file.path = second_name(path, tag)
            if not _appear(temporary, file.path):
                raise FileExistsError(errno.EEXIST, "both names are taken by other files", str(file.path))


def replace_text(path: Path, text: str, *, mode: int) -> None:
    """Replace a file in one step, on the disk when this returns. The mode holds from the first byte on."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path, str(os.getpid()))
    with _draft(temporary, path, mode=mode) as file:
        temporary.chmod(mode)  # whatever the umask
        file.write(text.encode())
        file.sync()
        temporary.replace(path)


def text_of(path: Path) -> str:
    """Return the file's text; none where there is no file."""
    try:
        return path.read_text()
    except FileNotFoundError:
        return ""


def sync(path: Path) -> None:
    """Bring a file's bytes, or a folder's entries, to the disk. Raises OSError with its name."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    except OSError as error:
        raise _named(error, path) from None
    finally:
        os.close(handle)


def temporary_name(path: Path, tag: str) -> Path:
    """Return the name that a file has before it is whole: recognisably vbatch's, hidden, never too long."""
    digest = hashlib.sha256(os.fsencode(path.name)).hexdigest()[:8]
    return path.with_name(f".{tag}.{digest}{SUFFIX}")


def second_name(path: Path, tag: str) -> Path:
    """Return the name under which a file appears beside another one that has its own."""
    return path.with_name(f"{path.stem}.{tag}{path.suffix}")


def abandoned(folder: Path) -> list[Path]:
    """Return vbatch's half-written files in this folder that no process writes any more."""
    return [path for path in sorted(folder.glob(f".*{SUFFIX}")) if not _is_locked(path)]


def remove_unless_locked(path: Path) -> bool:
    """Remove a file that no process has locked. False where one has, or has put a new file in its place.

    Raises OSError for a file that may not be opened or removed.
    """
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(stream.fileno()), path.lstat()):
                return False
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


@contextmanager
def locked(path: Path, *, wait: bool) -> Iterator[int]:
    """Hold this file, made where it is missing, for this process alone; yields its descriptor.

    The kernel releases it however the process ends. Raises BlockingIOError where another process holds it,
    unless it is to ``wait``.
    """
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield handle
    finally:
        os.close(handle)


@contextmanager
def _draft(temporary: Path, path: Path, *, mode: int) -> Iterator[AtomicFile]:
    """Open a file under its temporary name, which is gone in the end; without an error the folder is on the disk."""
    stream = _locked_draft(temporary, mode)
    try:
        yield AtomicFile(stream, path)
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        with suppress(OSError):  # what could not be written is reported already, with its name
            stream.close()
    sync(path.parent)


def _locked_draft(path: Path, mode: int) -> BinaryIO:
    """Open an empty file for this process alone. Raises BlockingIOError while another process writes it.

    What a killed writer left is unlinked, never truncated: it may have its final name already, too.
    """
    while True:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        except OSError as error:  # in words about the folder: the temporary name means nothing to a person
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
        same = os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False
    if same and os.fstat(handle).st_size > 0:
        path.unlink(missing_ok=True)
        return False
    return same


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
    """Whether the file has the name already. What cannot be read, such as a link to nothing, is another file."""
    try:
        return filecmp.cmp(temporary, path, shallow=False)
    except OSError:
        return False


def _is_locked(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # locked, gone, or another user's
        return True
    return False


def _named(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, os.strerror(error.errno or 0), str(path))
