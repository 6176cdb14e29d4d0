"""Open connections that keep the promises: durable commits, one writer at a time, private files."""

from __future__ import annotations

import os
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from sqlalchemy import URL, Engine, create_engine, event
from sqlalchemy.engine.interfaces import DBAPIConnection
from sqlalchemy.pool import ConnectionPoolEntry

from vbatch.errors import StoreMisconfigured
from vbatch.store.url import is_sqlite, sqlite_path

PAGE_SIZE = 16384  # bytes; request bodies of some 700 bytes fill pages of 4096 badly
CACHE_KIB = 48 * 1024
BUSY_TIMEOUT_MS = 2000
CONNECT_TIMEOUT_S = 10
LOCK_TIMEOUT_MS = 10_000  # then it is told whom we wait for, and tried again
IDLE_IN_TRANSACTION_MS = 30_000  # of a worker that was frozen, or lost its power: its locks must not stay

# SQLite 3.7.0 to 3.51.2 can corrupt a WAL database that several processes write and checkpoint; the fix was
# ported back to two older lines (sqlite.org/wal.html, "WAL-reset bug").
_WAL_SAFE_SINCE = (3, 51, 3)
_WAL_SAFE_BACKPORTS = {(3, 50): 7, (3, 44): 6}


def wal_is_safe(version: tuple[int, int, int] = sqlite3.sqlite_version_info) -> bool:
    """Whether this SQLite is free of the WAL-reset bug."""
    fixed = _WAL_SAFE_BACKPORTS.get(version[:2])
    return version >= _WAL_SAFE_SINCE or (fixed is not None and version[2] >= fixed)


def connect(url: URL, *, as_it_is: bool = False) -> Engine:
    """Return an SQLAlchemy engine for this store; no connection is made yet.

    With ``as_it_is`` a SQLite file keeps the journal mode that it was found in: its header is not written.
    """
    if is_sqlite(url):
        return _connect_sqlite(url, as_it_is=as_it_is)
    options = (
        f"-c synchronous_commit=on -c timezone=UTC -c lock_timeout={LOCK_TIMEOUT_MS}"
        f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS}"
    )
    given = url.query.get("options")
    if isinstance(given, str):  # the user's own settings hold too, but for these
        options = f"{given} {options}"
    defaults = {
        "connect_timeout": CONNECT_TIMEOUT_S,
        "application_name": "vbatch",
        "keepalives_idle": 30,
        "tcp_user_timeout": 60_000,
    }
    return create_engine(
        url.difference_update_query(["options"]),
        pool_size=4,
        pool_pre_ping=False,  # a dead connection is met by the retry that every transaction has
        pool_recycle=3600,
        connect_args={
            **{name: value for name, value in defaults.items() if name not in url.query},
            "client_encoding": "utf8",  # a database without an encoding (SQL_ASCII) would else give bytes
            "options": options,
        },
    )


def _connect_sqlite(url: URL, *, as_it_is: bool) -> Engine:
    engine = create_engine(url, connect_args={"timeout": BUSY_TIMEOUT_MS / 1000, "isolation_level": None})
    path = sqlite_path(url)

    @event.listens_for(engine, "do_connect")
    def make_private(_dialect: Any, _record: Any, _args: Any, _kwargs: Any) -> None:
        _create_private(path)

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
                fault="cannot_open",
            ) from None
