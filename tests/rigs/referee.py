"""A referee inside the database: it refuses a result from a stale lease, and to delete a batch with open requests.

Results with the epoch 0 are answers that ``submit --reuse`` copies while its batch is not visible.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from types import TracebackType

import psycopg

_LEASED = """SELECT 1 FROM chunk WHERE chunk.batch = NEW.batch
    AND NEW.seq BETWEEN chunk.first_seq AND chunk.last_seq AND chunk.epoch = NEW.epoch
    AND chunk.state = 'running'"""
_COPIED = "NEW.epoch = 0 AND EXISTS (SELECT 1 FROM batch WHERE pk = NEW.batch AND status = 'validating')"
_DELETED = """NEW.status = 'validating' AND NEW.submitter IS NULL AND EXISTS (
    SELECT 1 FROM chunk WHERE chunk.batch = NEW.pk AND chunk.state IN ('ready', 'running'))"""

_SQLITE = f"""
CREATE TRIGGER referee BEFORE INSERT ON result BEGIN
  SELECT RAISE(ABORT, 'referee: a result from a stale lease') WHERE NOT EXISTS ({_LEASED}) AND NOT ({_COPIED});
END;
CREATE TRIGGER referee_of_deletes BEFORE UPDATE OF status ON batch BEGIN
  SELECT RAISE(ABORT, 'referee: a batch with open requests is deleted') WHERE {_DELETED};
END"""

_POSTGRESQL = f"""
CREATE FUNCTION referee() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF NOT EXISTS ({_LEASED}) AND NOT ({_COPIED})
  THEN RAISE EXCEPTION 'referee: a result from a stale lease'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER referee BEFORE INSERT ON result FOR EACH ROW EXECUTE FUNCTION referee();
CREATE FUNCTION referee_of_deletes() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
  IF {_DELETED} THEN RAISE EXCEPTION 'referee: a batch with open requests is deleted'; END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER referee_of_deletes BEFORE UPDATE ON batch FOR EACH ROW EXECUTE FUNCTION referee_of_deletes()"""

_DROP_SQLITE = "DROP TRIGGER referee; DROP TRIGGER referee_of_deletes"
_DROP_POSTGRESQL = "DROP TRIGGER referee ON result; DROP TRIGGER referee_of_deletes ON batch"


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
        self._execute(_DROP_SQLITE if self._sqlite else _DROP_POSTGRESQL)

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
