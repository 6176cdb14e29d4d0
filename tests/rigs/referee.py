"""A referee inside the database: it sees every result as it is recorded, and refuses one from a stale lease."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from types import TracebackType

import psycopg

_SQLITE = """
CREATE TRIGGER referee BEFORE INSERT ON result BEGIN
  SELECT RAISE(ABORT, 'referee: a result from a stale lease') WHERE NOT EXISTS (
    SELECT 1 FROM chunk WHERE chunk.batch = NEW.batch
    AND NEW.seq BETWEEN chunk.first_seq AND chunk.last_seq AND chunk.epoch = NEW.epoch
    AND chunk.state = 'running');
END"""

_POSTGRESQL = """
CREATE FUNCTION referee() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NOT EXISTS (SELECT 1 FROM chunk WHERE chunk.batch = NEW.batch
      AND NEW.seq BETWEEN chunk.first_seq AND chunk.last_seq AND chunk.epoch = NEW.epoch
      AND chunk.state = 'running')
  THEN RAISE EXCEPTION 'referee: a result from a stale lease'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER referee BEFORE INSERT ON result FOR EACH ROW EXECUTE FUNCTION referee()"""


class Referee:
    """Installed for the length of a test, with a connection of its own."""

    def __init__(self, url: str) -> None:
        self._url = url

    def __enter__(self) -> Referee:
        self._execute(_SQLITE if self._sqlite else _POSTGRESQL)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._execute("DROP TRIGGER referee" if self._sqlite else "DROP TRIGGER referee ON result")

    def integrity(self) -> str:
        """What the database says of its own files (PostgreSQL has no such question: a full read stands in)."""
        if self._sqlite:
            with sqlite3.connect(self._path, timeout=30) as connection:
                return str(connection.execute("PRAGMA integrity_check").fetchone()[0])
        with psycopg.connect(self._dsn) as connection:
            connection.execute("SELECT count(*) FROM request, LATERAL (SELECT length(body)) AS read")
            connection.execute("SELECT count(*), max(length(body)) FROM result")
        return "ok"

    @property
    def _sqlite(self) -> bool:
        return self._url.startswith("sqlite")

    @property
    def _path(self) -> str:
        return self._url.split(":///", 1)[1]

    @property
    def _dsn(self) -> str:
        return self._url.replace("+psycopg", "", 1)

    def _execute(self, statement: str) -> None:
        if self._sqlite:
            with closing(sqlite3.connect(self._path, timeout=30)) as connection:
                connection.executescript(statement)
        else:
            with psycopg.connect(self._dsn) as connection:
                connection.execute(statement)
