"""What doctor asks of a database: who it is, how durable it is, whether its schema and its pages are whole.

Nothing here changes anything: no file is created, no schema migrated.
"""

from __future__ import annotations

import fcntl
import os
import sqlite3
import struct
import time
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection, text

from vbatch.store.database import Store, migrate
from vbatch.store.database.connections import wal_is_safe
from vbatch.store.tables import BatchRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A PostgreSQL server. ``unsafe`` are its settings that break the promise that saved means saved.

    ``withheld`` are the tables of ours that we may not read and write, ``may_create`` is the right to make them.
    """

    version: str
    uptime: timedelta
    in_recovery: bool
    read_only: bool
    unsafe: tuple[str, ...]
    withheld: tuple[str, ...]
    may_create: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A SQLite file. ``damage`` are the first words of SQLite's own check, None where it found none.

    ``read_whole`` says whether the check came to its end in the time that it had.
    """

    damage: str | None
    read_whole: bool


def revision(store: Store) -> str | None:
    """Return the schema's revision, None for a database without tables of ours. Raises what the store raises."""
    return store.read(migrate.revision)


_TABLES = tuple(BatchRow.metadata.tables)
_WITHHELD = text(
    "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relname = ANY(:names) "
    "AND pg_table_is_visible(oid) AND NOT (has_table_privilege(oid, 'SELECT') "
    "AND has_table_privilege(oid, 'INSERT') AND has_table_privilege(oid, 'UPDATE') "
    "AND has_table_privilege(oid, 'DELETE')) ORDER BY relname"
)


def server(store: Store) -> Server:
    """Ask a PostgreSQL server about itself."""

    def work(connection: Connection) -> Server:
        def setting(name: str) -> str:
            return str(connection.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar_one())

        uptime, recovery, may_create = connection.execute(
            text(
                "SELECT now() - pg_postmaster_start_time(), pg_is_in_recovery(), "
                "COALESCE(has_schema_privilege(current_schema(), 'CREATE'), false)"
            )
        ).one()
        withheld = connection.execute(_WITHHELD, {"names": list(_TABLES)}).scalars()
        return Server(
            version=setting("server_version").split()[0],
            uptime=uptime,
            in_recovery=bool(recovery),
            read_only=setting("default_transaction_read_only") == "on",
            unsafe=tuple(name for name in ("fsync", "full_page_writes") if setting(name) == "off"),
            withheld=tuple(withheld),
            may_create=bool(may_create),
        )

    return store.read(work)


def in_unsafe_wal_mode(path: Path) -> bool:
    """Whether a SQLite file was left in WAL mode, and this SQLite can damage it there.

    Read from the file's header (sqlite.org/fileformat2.html, 1.3), for a connection of ours would set the mode
    first. To be asked before the process has one: closing the file drops the locks of all (fcntl(2)).
    """
    try:
        with path.open("rb") as stream:
            return stream.read(20)[18:] == b"\x02\x02" and not wal_is_safe()
    except OSError:  # opening the store will say why
        return False


def kept_in_wal_mode(path: Path) -> bool:
    """Whether another process has this file open in WAL mode, so that nobody can set the mode back.

    It holds a lock on byte 128 of the shared index (sqlite.org/walformat.html, 2.3.1). To be asked as above.
    """
    asked = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 128, 1, 0)
    try:
        with Path(f"{path}-shm").open("rb") as stream:
            answer = fcntl.fcntl(stream, fcntl.F_GETLK, asked)
    except OSError:
        return False
    return bool(struct.unpack("hhqqi", answer)[0] != fcntl.F_UNLCK)


def file(path: Path, *, limit: timedelta) -> File:
    """Have SQLite read a file page by page until the limit, for writers must wait meanwhile.

    Takes about a second a GB on a good disk. Raises sqlite3.OperationalError where the file is locked.
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


def bytes_to_come(store: Store) -> int:
    """Estimate how much the unfinished requests will add to the store and, as much again, to the output files.

    An answer is taken to be as long as those of the same batches so far, or 2 KiB where there are none yet.
    """

    def work(connection: Connection) -> int:
        unfinished, answered = connection.execute(
            text(
                "SELECT COALESCE(SUM(total - completed - failed), 0), COALESCE(SUM(completed), 0) FROM chunk "
                "WHERE state IN ('ready', 'running')"
            )
        ).one()
        average = 2048
        if answered:
            sampled = connection.execute(
                text("SELECT AVG(length(body)) FROM (SELECT body FROM result LIMIT 1000) AS sample")
            ).scalar()
            average = round(sampled or average)
        return int(unfinished) * average * 2

    return store.read(work)
