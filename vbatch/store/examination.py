"""What doctor asks of a database: who it is, how durable it is, whether its schema and its pages are whole.

Nothing here changes anything: no file is created, no schema migrated.
"""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from sqlalchemy import Connection, text

from vbatch.store import migrate
from vbatch.store.connections import wal_is_safe
from vbatch.store.database import Store


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A PostgreSQL server. ``unsafe`` are its settings that break the promise that saved means saved."""

    version: str
    uptime: timedelta
    in_recovery: bool
    read_only: bool
    unsafe: tuple[str, ...]
    data_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class File:
    """A SQLite file. ``damage`` are the first words of SQLite's own check, None where the file is whole."""

    version: str
    journal_mode: str
    wal_is_safe: bool
    bytes: int
    damage: str | None


def revision(store: Store) -> str | None:
    """Return the schema's revision, None for a database without tables of ours. Raises what the store raises."""
    return store.read(migrate.revision)


def server(store: Store) -> Server:
    """Ask a PostgreSQL server about itself."""

    def work(connection: Connection) -> Server:
        def setting(name: str) -> str:
            return str(connection.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar_one())

        uptime, recovery, size = connection.execute(
            text(
                "SELECT now() - pg_postmaster_start_time(), pg_is_in_recovery(), "
                "pg_database_size(current_database())"
            )
        ).one()
        return Server(
            version=setting("server_version").split()[0],
            uptime=uptime,
            in_recovery=bool(recovery),
            read_only=setting("default_transaction_read_only") == "on",
            unsafe=tuple(name for name in ("fsync", "full_page_writes") if setting(name) == "off"),
            data_bytes=int(size),
        )

    return store.read(work)


def file(path: Path, *, check: bool) -> File:
    """Look at a SQLite file; ``check`` has every page of it read, which takes about a second a GB.

    Raises sqlite3.Error.
    """
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=5)
    try:
        (journal_mode,) = connection.execute("PRAGMA journal_mode").fetchone()
        said = [row[0] for row in connection.execute("PRAGMA quick_check(3)")] if check else ["ok"]
        return File(
            version=sqlite3.sqlite_version,
            journal_mode=journal_mode,
            wal_is_safe=wal_is_safe(),
            bytes=path.stat().st_size,
            damage=None if said == ["ok"] else "; ".join(said),
        )
    finally:
        connection.close()


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
