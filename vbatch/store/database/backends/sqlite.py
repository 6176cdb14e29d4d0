"""SQLite: a file of the user's own, written by one process at a time."""

from __future__ import annotations

import fcntl
import logging
import os
import shlex
import shutil
import sqlite3
import struct
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from sqlalchemy import Connection, Engine, Table, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from vbatch.errors import StoreMisconfigured
from vbatch.store.database.backends import copies
from vbatch.store.database.backends.database_file import DatabaseFile, why_not_opened
from vbatch.store.database.backends.inserting import inserting
from vbatch.store.database.backends.protocol import (
    BulkInsert,
    Fault,
    Transient,
    Write,
    not_understood,
    parse,
)
from vbatch.store.database.columns import SQLITE_NOW, sqlite_now
from vbatch.system import disks, files

log = logging.getLogger(__name__)

PAGE_SIZE = 16384  # bytes; request bodies of some 700 bytes fill pages of 4096 badly
CACHE_KIB = 8 * 1024  # a connection's; more made nothing faster (bench_scale, 3,000,000 lines)
BUSY_TIMEOUT_MS = 2000

# SQLite 3.7.0 to 3.51.2 can corrupt a WAL database that several processes write and checkpoint; the fix was
# ported back to two older lines (sqlite.org/wal.html, "WAL-reset bug").
_WAL_SAFE_SINCE = (3, 51, 3)
_WAL_SAFE_BACKPORTS = {(3, 50): 7, (3, 44): 6}

# Result codes (sqlite.org/rescode.html).
_PASSING = {
    sqlite3.SQLITE_BUSY: ("another process holds its lock", Fault.LOCKED),
    sqlite3.SQLITE_LOCKED: ("it is locked", Fault.LOCKED),
    sqlite3.SQLITE_IOERR: ("disk I/O error", Fault.DISK),
    sqlite3.SQLITE_FULL: ("the disk is full", Fault.DISK),
    sqlite3.SQLITE_PROTOCOL: ("it is locked", Fault.LOCKED),
}
_PERMANENT = {
    sqlite3.SQLITE_READONLY: ("the file is read-only", Fault.READ_ONLY),
    sqlite3.SQLITE_CORRUPT: ("the file is damaged", Fault.DAMAGED),
    sqlite3.SQLITE_CANTOPEN: ("the file cannot be opened", Fault.CANNOT_OPEN),
    sqlite3.SQLITE_AUTH: ("permission denied", Fault.CANNOT_OPEN),
    sqlite3.SQLITE_NOTADB: ("the file is not a SQLite database", Fault.NOT_SQLITE),
}
# What SQLite reports once the kernel has made the file system read-only: of a file that was open before, too.
_AS_READ_ONLY = frozenset({sqlite3.SQLITE_READONLY, sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR})


class Sqlite:
    """A SQLite file."""

    dialect: ClassVar[str] = "sqlite"
    schemes: ClassVar[frozenset[str]] = frozenset({"sqlite", "sqlite+pysqlite"})
    connections_fail_together: ClassVar[bool] = False
    address = None

    def __init__(self, given: str) -> None:
        self.url = parse(given).set(drivername="sqlite+pysqlite")
        if not self.url.database or self.url.database == ":memory:":
            raise not_understood("the SQLite URL names no file")
        self.file = Path(self.url.database)
        self._opened = DatabaseFile(self.file)

    def engine(self, *, as_it_is: bool) -> Engine:
        """Return an engine whose commits are durable. A file that is looked at ``as_it_is`` keeps its journal mode."""
        engine = create_engine(
            self.url,
            connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "isolation_level": None},
            hide_parameters=True,  # they are requests and answers
        )

        @event.listens_for(engine, "do_connect")
        def look(_dialect: Any, _record: Any, _args: Any, _kwargs: Any) -> None:
            self._opened.before_connecting()

        @event.listens_for(engine, "connect")
        def configure(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
            self._opened.require_same()  # else another one may have been opened
            cursor = connection.cursor()
            connection.create_function(SQLITE_NOW, 0, sqlite_now)
            cursor.execute(f"PRAGMA page_size={PAGE_SIZE}")  # of effect only in a new file
            if as_it_is:
                cursor.execute("PRAGMA synchronous=3")  # EXTRA, which is enough in either mode
            elif wal_is_safe():
                cursor.execute("PRAGMA journal_mode=WAL")
                cursor.execute("PRAGMA synchronous=FULL")
            else:
                cursor.execute("PRAGMA journal_mode=DELETE")
                cursor.execute("PRAGMA synchronous=EXTRA")
            cursor.execute(f"PRAGMA cache_size=-{CACHE_KIB}")
            cursor.execute("PRAGMA foreign_keys=ON")
            cursor.close()

        @event.listens_for(engine, "invalidate")
        def let_go(
            connection: DBAPIConnection, _record: ConnectionPoolEntry, _error: BaseException | None
        ) -> None:
            """Give back the lock of a transaction that Ctrl-C cut off, which closing keeps while a cursor lives."""
            with suppress(sqlite3.Error):
                connection.rollback()

        return engine

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Take the lock of the one writer at once: a reader that becomes a writer could not wait for it."""
        self._opened.require_same()
        connection.execute(text("BEGIN IMMEDIATE" if write else "BEGIN"))

    def ended(self) -> None:
        """Look whether the file was at its path to the end: what a file got that was moved meanwhile is not stored."""
        self._opened.require_same()

    def renew(self) -> None:
        """Open whatever is at the path."""
        self._opened.renew()

    def accept(self) -> None:
        """Keep to this file."""
        self._opened.accept()

    def describe(self, error: BaseException) -> str | None:
        """Return the error as it is: SQLite's messages name tables and columns, and no values."""
        if not isinstance(error, sqlite3.Error):
            return None
        return f"{getattr(error, 'sqlite_errorname', type(error).__name__)}: {error}"

    def diagnose(self, error: BaseException | None) -> Transient | StoreMisconfigured | None:
        """Return what an error of SQLite means, by its primary result code, and by what is at the path."""
        if isinstance(error, StoreMisconfigured):
            return self._in_its_place(error)
        if not isinstance(error, sqlite3.Error):
            return None
        code = getattr(error, "sqlite_errorcode", 0)
        moved = code == sqlite3.SQLITE_READONLY_DBMOVED
        return self._opened.elsewhere(moved=moved) or self._meaning(code & 0xFF)

    def _meaning(self, code: int) -> Transient | StoreMisconfigured | None:
        if code in _AS_READ_ONLY and _on_a_read_only_disk(self.file):
            return Transient("its file system is read-only", Fault.READ_ONLY)
        if code in _PASSING:
            return Transient(*_PASSING[code])
        if code not in _PERMANENT:
            return None
        words, fault = _PERMANENT[code]
        if fault is Fault.CANNOT_OPEN and (passing := why_not_opened(self.file, words)) is not None:
            return passing
        lasting = StoreMisconfigured(
            f"the store {self.file} cannot be used: {words}",
            hint=shlex.join(["ls", "-ld", str(self.file), str(self.file.parent)]),
            fault=fault,
        )
        if self._opened.accepted and fault in (Fault.DAMAGED, Fault.NOT_SQLITE):
            # A backup is being copied over it, perhaps: it is whole in a moment.
            return Transient(words, fault, lasting=lasting)
        return self._in_its_place(lasting) or lasting

    def _in_its_place(self, wrong: StoreMisconfigured) -> Transient | None:
        """Return how to wait for a good file, where a good one was open and a wrong one has taken its place."""
        if not self._opened.opened or self._opened.accepted:
            return None
        self._opened.renew()
        words = f"what has replaced {self.file} is no store: {wrong.message}"
        return Transient(words, Fault.REPLACED, wrong.hint, lasting=wrong)

    @contextmanager
    def migration(self, engine: Engine) -> Iterator[Connection]:
        """Lock a file beside the database, so that the others wait for as long as it takes, and then the database."""
        lock = self.file.with_name(self.file.name + ".migrate.lock")
        with files.locked(lock, wait=True), engine.connect() as connection, connection.begin():
            self.begin(connection, write=True)
            yield connection

    def back_up(self) -> None:
        """Copy the database beside itself, in place of earlier copies. An empty one is not worth it.

        Raises StoreMisconfigured where there is no room for that.
        """
        copies.make(self.file)

    def bulk_insert(
        self,
        engine: Engine,  # noqa: ARG002
        write: Write,
        table: Table,
    ) -> AbstractContextManager[BulkInsert]:
        """Insert in large transactions, while the next rows are made ready."""
        return inserting(write, table)

    @contextmanager
    def scratch(self, write: Write) -> Iterator[str]:  # noqa: ARG002
        """Make a folder on the same file system."""
        place = self.file.parent
        place.mkdir(parents=True, exist_ok=True, mode=0o700)
        folder = tempfile.mkdtemp(prefix="vbatch-selftest-", dir=place)
        try:
            yield f"sqlite:///{quote(folder)}/vbatch.db"
        finally:
            shutil.rmtree(folder)


def wal_is_safe(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> bool:
    """Whether this SQLite is free of the WAL-reset bug."""
    fixed = _WAL_SAFE_BACKPORTS.get(version[:2])
    return version >= _WAL_SAFE_SINCE or (fixed is not None and version[2] >= fixed)


def _on_a_read_only_disk(path: Path) -> bool:
    with suppress(OSError):
        return disks.mount_of(path).read_only
    return False


# What doctor asks of a file before a connection of vbatch's would change or hide it.


def in_unsafe_wal_mode(path: Path) -> bool:
    """Whether a file was left in WAL mode, and this SQLite can damage it there.

    Read from the file's header (sqlite.org/fileformat2.html, 1.3), because a connection would set the mode first.
    To be asked before the process has one: closing the file drops the locks of all (fcntl(2)).
    """
    try:
        with path.open("rb") as stream:
            return stream.read(20)[18:] == b"\x02\x02" and not wal_is_safe()
    except OSError:  # opening the store will say why
        return False


def kept_in_wal_mode(path: Path) -> bool:
    """Whether another process has this file open in WAL mode, so that the mode cannot be set back.

    It holds a lock on byte 128 of the shared index (sqlite.org/walformat.html, 2.3.1). To be asked as above.
    """
    asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 128, 1, 0)
    try:
        with Path(f"{path}-shm").open("rb") as stream:
            answer = fcntl.fcntl(stream, fcntl.F_GETLK, asked)
    except OSError:
        return False
    return bool(struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK)


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """``damage`` are the first words of SQLite's own check of a file, None where it found none.

    ``read_whole`` says whether the check came to its end in the time that it had.
    """

    damage: str | None
    read_whole: bool


def examine(path: Path, *, limit: timedelta) -> File:
    """Have SQLite read a file page by page until the limit, because writers must wait meanwhile.

    Takes about a second per GB on a good disk. Raises sqlite3.OperationalError where the file is locked.
    """
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
    deadline = time.monotonic() + limit.total_seconds()
    connection.set_progress_handler(lambda: time.monotonic() > deadline, 1000)
    try:
        said = [row[0] for row in connection.execute("PRAGMA quick_check(3)")]
    except sqlite3.DatabaseError as error:
        match error.sqlite_errorcode & 0xFF:
            case sqlite3.SQLITE_INTERRUPT:
                return File(damage=None, read_whole=False)
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                raise
        said = [str(error)]
    finally:
        connection.close()
    return File(damage=None if said == ["ok"] else "; ".join(said), read_whole=True)
