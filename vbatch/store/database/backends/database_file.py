"""The file at a store's path: whether it is still the one that this process opened, and where that one is now.

SQLite keeps reading a file that was moved or deleted, and a commit may still reach it. So the path is looked at before
and after each transaction. The file that was opened is held by a descriptor without any rights (O_PATH): its inode
number is not given to another file meanwhile, closing it takes no lock away, and what was deleted can be brought back.
"""

from __future__ import annotations

import os
import shlex
import stat
import threading
from contextlib import suppress
from pathlib import Path

from vbatch.errors import StoreMisconfigured, StoreReplaced
from vbatch.store.database.backends import journals
from vbatch.store.database.backends.protocol import Fault, NotThere, Transient
from vbatch.system import limits

_creating = threading.Lock()


class DatabaseFile:
    """A store's file, as one ``Store`` sees it.

    ``opened``: a good one was there once. From then on none is created, and what stands in its place is waited out.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.RLock()
        self._held: int | None = None
        self._accepted = False
        self.opened = False

    @property
    def accepted(self) -> bool:
        """Whether the file at the path was good when it was opened."""
        return self._accepted

    def renew(self) -> None:
        """Take whatever is at the path for the store from the next connection on."""
        with self._lock:
            self._let_go()

    def accept(self) -> None:
        """Take note that the file is good."""
        self._accepted = self.opened = True

    def before_connecting(self) -> None:
        """Hold the file that is at the path, made where there never was one, before SQLite opens it.

        Raises NotThere and StoreReplaced as ``require_same`` does, StoreMisconfigured where it cannot be made.
        """
        with self._lock:
            if self._held is None:
                if not self.opened:
                    _create_private(self._path)
                self._hold()
        self.require_same()
        if journals.is_foreign(self._path):
            raise self._foreign_journal()

    def require_same(self) -> None:
        """Raise NotThere while nothing is at the path, and StoreReplaced when another file is."""
        try:
            found = self._path.stat()
        except OSError as error:
            raise self._not_there(error) from None
        with self._lock:
            if self._held is None:  # another thread has met something else
                raise NotThere(f"{self._path} is being replaced", Fault.MOVED)
            held = os.fstat(self._held)
            if (found.st_dev, found.st_ino) == (held.st_dev, held.st_ino):
                return
            if not self._accepted:
                self._let_go()
                raise NotThere(f"{self._path} is being replaced", Fault.MOVED)
        raise StoreReplaced(
            f"the store file {self._path} was replaced by another file while vbatch used it",
            hint="vbatch list   # shows what the store holds now",
        )

    def elsewhere(self, *, moved: bool) -> Transient | None:
        """Return what an error of SQLite means where the file is not at its path; ``moved``: SQLite says so itself."""
        try:
            self.require_same()
        except NotThere as gone:
            return Transient(gone.reason, gone.fault, gone.hint)
        except StoreReplaced as replaced:
            return Transient(replaced.message, Fault.REPLACED)
        return Transient(f"{self._path} was moved for a moment", Fault.MOVED) if moved else None

    def _hold(self) -> None:
        try:
            held = os.open(self._path, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            raise self._not_there(error) from None
        found = os.fstat(held)
        if self.opened and stat.S_ISREG(found.st_mode) and found.st_size == 0:
            os.close(held)
            raise NotThere(f"{self._path} is empty: put a backup there", Fault.MOVED)
        self._held = held

    def _let_go(self) -> None:
        self._accepted = False
        if self._held is not None:
            os.close(self._held)
            self._held = None

    def _not_there(self, error: OSError) -> NotThere:
        """Say where the file is now, and how it comes back."""
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            return NotThere(f"{self._path} cannot be reached: {error.strerror}", Fault.MOVED)
        folder = self._path.absolute().parent
        if not folder.is_dir():
            return NotThere(
                f"the folder {folder} is not there: mount or restore it", Fault.MOVED, f"ls -ld {folder}"
            )
        with self._lock, suppress(OSError):
            if self._held is not None:
                return self._where(self._held)
        return NotThere(f"{self._path} was moved or deleted: put it back, or a backup", Fault.MOVED)

    def _where(self, held: int) -> NotThere:
        if os.fstat(held).st_nlink == 0:
            back = shlex.join(["cp", f"/proc/{os.getpid()}/fd/{held}", str(self._path)])
            return NotThere(
                f"{self._path} was deleted: bring it back with {back}, or put a backup there",
                Fault.MOVED,
            )
        now = str(Path(f"/proc/self/fd/{held}").readlink())
        back = shlex.join(["mv", now, str(self._path)])
        return NotThere(f"{self._path} was moved to {now}: bring it back with {back}", Fault.MOVED, back)

    def _foreign_journal(self) -> NotThere | StoreMisconfigured:
        journal = journals.of(self._path)
        aside = shlex.join(["mv", str(journal), f"{journal}.foreign"])
        if self.opened:
            return NotThere(
                f"{journal} was left by another database, and would damage {self._path}: {aside}",
                Fault.FOREIGN_JOURNAL,
                aside,
            )
        return StoreMisconfigured(
            f"{journal} was left by another database, and SQLite would damage the store {self._path} with it",
            hint=aside,
            fault=Fault.FOREIGN_JOURNAL,
        )


def _create_private(path: Path) -> None:
    """Create the file for its owner alone, for prompts are private. One that exists is not even opened.

    Closing any handle of a file takes away all locks that this process holds on it (fcntl(2)), those of SQLite
    in another thread too, and two writers at once damage the database (sqlite.org/howtocorrupt.html, 2.2).
    """
    with _creating:
        if os.path.lexists(path):
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            return
        except OSError as error:
            raise StoreMisconfigured(
                f"the store {path} cannot be opened: {error.strerror}",
                hint=f"ls -ld {path.parent}",
                fault=Fault.CANNOT_OPEN,
            ) from None


def why_not_opened(path: Path, words: str) -> Transient | None:
    """Return why SQLite could not open a file or its journal, which it does not say itself; ``words`` are its own.

    None where the permissions keep vbatch from it. Without a reason it was seen once, right after a power cut.
    """
    if not (
        path.is_file() and os.access(path, os.R_OK | os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)
    ):
        return None
    if limits.inodes_used_up(path.parent):
        return Transient(f"no inodes are left on the disk of {path}", Fault.DISK, f"df -i {path.parent}")
    if (limit := limits.no_more_files()) is not None:
        return Transient(limit.message, Fault.DISK, limit.hint)
    return Transient(words, Fault.CANNOT_OPEN)
