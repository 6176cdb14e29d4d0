"""Bring the schema up to date at start: nothing to do costs one query, and Alembic is not even imported."""

from __future__ import annotations

import fcntl
import logging
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from sqlalchemy import URL, Connection, Engine, inspect, text

from vbatch.errors import StoreMisconfigured
from vbatch.store.url import is_sqlite, sqlite_path

log = logging.getLogger(__name__)

# Oldest first; a test holds this in step with the scripts in migrations/versions.
REVISIONS = ("0001", "0002")
CURRENT = REVISIONS[-1]

_LOCK = 0x76626174  # "vbat": the advisory lock that all migrations take on PostgreSQL


def ensure_current(engine: Engine, url: URL) -> None:
    """Migrate if needed. Several processes may call this at once; one migrates, the others wait.

    Raises StoreMisconfigured when the schema is newer than this version of vbatch.
    """
    with engine.connect() as connection:
        if _is_current(connection):
            return
    with _lock(engine, url) as connection:
        if _is_current(connection):
            return
        if is_sqlite(url):
            _back_up(sqlite_path(url))
        _upgrade(connection)


def _is_current(connection: Connection) -> bool:
    found = revision(connection)
    if found is not None and found not in REVISIONS:
        raise StoreMisconfigured(
            f"the store has schema {found}, which is newer than this vbatch (it knows {CURRENT})",
            hint="pip install --upgrade vbatch",
            fault="schema_newer",
        )
    return found == CURRENT


def revision(connection: Connection) -> str | None:
    """Return the schema's revision, None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


@contextmanager
def _lock(engine: Engine, url: URL) -> Iterator[Connection]:
    if not is_sqlite(url):
        with engine.begin() as connection:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_LOCK})"))
            yield connection
        return
    path = sqlite_path(url)
    handle = os.open(
        path.with_name(path.name + ".migrate.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600
    )
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        with engine.connect() as connection, connection.begin():
            connection.execute(text("BEGIN IMMEDIATE"))
            yield connection
    finally:
        os.close(handle)


def _back_up(path: Path) -> None:
    """Copy the database beside itself before a migration, once for each revision that it leaves."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source:
        tables = source.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchall()
        if not tables:
            return
        (found,) = source.execute("SELECT version_num FROM alembic_version").fetchone()
        target = path.with_name(f"{path.name}.before-{found}.bak")
        os.close(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
        with closing(sqlite3.connect(target)) as copy:
            source.backup(copy)
    log.info("store.backed_up file=%s", target)


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    log.info("store.migrated revision=%s", CURRENT)
