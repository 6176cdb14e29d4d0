"""Write a file so that it is either whole under its name, or not there; and lock one for as long as a process lives.

Temporary name in the same folder, fsync, the final name, fsync of the folder: without the first fsync a renamed
file was empty after a power cut, without the last it still had its temporary name (measured). An output gets its
name by a link, which cannot overwrite; a file of vbatch's own settings by a rename, which replaces the earlier one.

The folder of an output may belong to several people. So no name in it is trusted: nothing is opened through a link,
nothing waits for the other end of a FIFO, and what is not a file of this user is named and left alone.
"""

from __future__ import annotations

import errno
import fcntl
import filecmp
import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

BUFFER = 1 << 20  # bytes
SUFFIX = ".vbatch-tmp"

# What link(2) says on file systems without hard links (FAT, some network shares): there a rename has to do, which
# would overwrite a file that appears in the very moment between.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EMLINK, errno.ENOSYS}


_KINDS = {
    stat.S_IFREG: None,
    stat.S_IFLNK: "a symbolic link",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFDIR: "a folder",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


class NotAFile(FileExistsError):
    """Something that is no regular file has the name: a link, a FIFO, a device."""


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
def atomic_file(path: Path, *, tag: str, mode: int = 0o666) -> Iterator[AtomicFile]:
    """Open a file for writing that appears under its name, durably, when the block ends without an error.

    Nothing is overwritten. A file of the same bytes was written by an earlier try, and all is well; beside any
    other one the file appears with the tag in its name. Raises OSError when the disk refuses or something is in the
    way, BlockingIOError while another process writes the same file.
    """
    temporary = temporary_name(path, tag)
    with _draft(temporary, path, mode=mode) as file:
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
    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
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


def kind_of(path: Path) -> str | None:
    """Return what has this name, in words, where it is no regular file; None for one, and where there is nothing."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return None
    return _KINDS.get(stat.S_IFMT(mode), "something that is no file")


def open_plain(path: Path) -> BinaryIO:
    """Open a regular file for reading. Raises OSError for anything else, which may block or never end: NotAFile."""
    handle = _open_plain(path, os.O_RDONLY)
    return os.fdopen(handle, "rb")


def create_private(path: Path) -> BinaryIO:
    """Create a file for its owner alone, to write. Raises FileExistsError where anything has that name."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    os.fchmod(handle, 0o600)  # whatever the umask
    return os.fdopen(handle, "wb")


def remove_unless_locked(path: Path) -> bool:
    """Remove a file that no process has locked. False where one has, or has put a new file in its place.

    Raises OSError for a file that may not be opened or removed, and for what is no file.
    """
    try:
        with open_plain(path) as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not _has_name(stream.fileno(), path):
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
    handle = _open_plain(path, os.O_RDWR | os.O_CREAT, 0o600)
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
    """Create an empty file for this process alone. Raises BlockingIOError while another process writes it.

    What a killed writer left is unlinked, never truncated: it may have its final name already, too.
    """
    while True:
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
        except FileExistsError:
            _remove_abandoned(path)
            continue
        except OSError as error:  # in words about the folder: the temporary name means nothing to a person
            raise _named(error, path.parent) from None
        try:
            with suppress(BlockingIOError):  # another process takes it for abandoned, and removes it
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _has_name(handle, path):
                    return os.fdopen(os.dup(handle), "wb", buffering=BUFFER)
        finally:
            os.close(handle)


def _remove_abandoned(path: Path) -> None:
    with suppress(FileNotFoundError), open_plain(path) as stream:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _has_name(stream.fileno(), path):
            path.unlink()


def _has_name(handle: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(handle), path.lstat())
    except FileNotFoundError:
        return False


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
        with open_plain(path) as stream:
            fcntl.flock(stream, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:  # locked, gone, another user's, or no file
        return True
    return False


def _open_plain(path: Path, flags: int, mode: int = 0) -> int:
    """Open a regular file, through no link and without waiting for the other end of a FIFO. Raises NotAFile."""
    try:
        handle = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, mode)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO):  # a link; a FIFO without a reader, or a socket
            raise _in_the_way(path) from None
        raise
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise _in_the_way(path)
    return handle


def _in_the_way(path: Path) -> NotAFile:
    return NotAFile(errno.EEXIST, f"{kind_of(path) or 'no file'} is in the way; remove it", str(path))


def _named(error: OSError, path: Path) -> OSError:
    return OSError(error.errno, os.strerror(error.errno or 0), str(path))
