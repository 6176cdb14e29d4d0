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
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import quote

from sqlalchemy import Connection, Engine, Table, create_engine, event, text
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from vbatch.errors import StoreMisconfigured
from vbatch.store.database.backends.protocol import BulkInsert, Row, Write
from vbatch.store.database.faults import Fault, Transient
from vbatch.store.database.url import not_understood, parse
from vbatch.system import files

log = logging.getLogger(__name__)

PAGE_SIZE = 16384  # bytes; request bodies of some 700 bytes fill pages of 4096 badly
CACHE_KIB = 48 * 1024
BUSY_TIMEOUT_MS = 2000
BULK_BYTES = 24 << 20  # of bodies in one transaction: each costs three syncs

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

    def engine(self, *, as_it_is: bool) -> Engine:
        """Return an engine whose commits are durable. A file that is looked at ``as_it_is`` keeps its journal mode."""
        engine = create_engine(
            self.url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "isolation_level": None}
        )

        @event.listens_for(engine, "do_connect")
        def make_private(_dialect: Any, _record: Any, _args: Any, _kwargs: Any) -> None:
            _create_private(self.file)

        @event.listens_for(engine, "connect")
        def configure(connection: DBAPIConnection, _record: ConnectionPoolEntry) -> None:
            cursor = connection.cursor()
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
        connection.execute(text("BEGIN IMMEDIATE" if write else "BEGIN"))

    def diagnose(self, error: BaseException | None) -> Transient | StoreMisconfigured | None:
        """Return what an error of SQLite means, by its primary result code."""
        if not isinstance(error, sqlite3.Error):
            return None
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF
        if code in _PASSING:
            return Transient(*_PASSING[code])
        if code not in _PERMANENT:
            return None
        words, fault = _PERMANENT[code]
        if fault is Fault.CANNOT_OPEN and _may_be_opened(
            self.file
        ):  # seen once, in the moment after a power cut
            return Transient(words, fault)
        return StoreMisconfigured(
            f"the store {self.file} cannot be used: {words}",
            hint=shlex.join(["ls", "-ld", str(self.file), str(self.file.parent)]),
            fault=fault,
        )

    @contextmanager
    def migration(self, engine: Engine) -> Iterator[Connection]:
        """Lock a file beside the database, so that the others wait for as long as it takes, and then the database."""
        lock = self.file.with_name(self.file.name + ".migrate.lock")
        with files.locked(lock, wait=True), engine.connect() as connection, connection.begin():
            self.begin(connection, write=True)
            yield connection

    def back_up(self) -> None:
        """Copy the database beside itself, once for each revision that it leaves. An empty one is not worth it."""
        with closing(sqlite3.connect(f"{self.file.absolute().as_uri()}?mode=ro", uri=True)) as source:
            if not source.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchall():
                return
            (found,) = source.execute("SELECT version_num FROM alembic_version").fetchone()
            target = self.file.with_name(f"{self.file.name}.before-{found}.bak")
            os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
            with closing(sqlite3.connect(target)) as copy:
                source.backup(copy)
        log.info("store.backed_up file=%s", target)

    @contextmanager
    def bulk_insert(self, engine: Engine, write: Write, table: Table) -> Iterator[BulkInsert]:  # noqa: ARG002
        """Insert in large transactions: each is durable when it is written, and safe to replay."""
        columns = ", ".join(table.columns.keys())
        values = ", ".join("?" * len(table.columns))
        statement = f"INSERT OR IGNORE INTO {table.name} ({columns}) VALUES ({values})"

        def write_rows(rows: list[Row]) -> None:
            write(lambda connection: connection.exec_driver_sql(statement, rows))

        yield BulkInsert(write=write_rows, write_bytes=BULK_BYTES, close=lambda: None)

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


def _may_be_opened(path: Path) -> bool:
    """Whether nothing that a person could fix keeps vbatch from this file and from a journal beside it."""
    return path.is_file() and os.access(path, os.R_OK | os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)


_creating = threading.Lock()


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
