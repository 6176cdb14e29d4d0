"""``Store``: the open database. Every transaction of vbatch runs through here, and is retried here."""

from __future__ import annotations

import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import psycopg
import tenacity
from sqlalchemy import Connection, Engine, text
from sqlalchemy.exc import DBAPIError

from vbatch.errors import Interrupted, StoreUnreachable
from vbatch.store import connections, migrate
from vbatch.store.faults import Transient, diagnose
from vbatch.store.url import is_sqlite, parse_url, shown, sqlite_path

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for a database that is away, and how long to pause between two tries at most."""

    limit: timedelta | None
    pause: timedelta


COMMAND_PATIENCE = Patience(
    limit=timedelta(seconds=60), pause=timedelta(seconds=2)
)  # the incident's 30 tries
WORKER_PATIENCE = Patience(limit=None, pause=timedelta(seconds=3))
NO_PATIENCE = Patience(limit=timedelta(0), pause=timedelta(0))


class _Passing(Exception):
    """A fault that passes by itself."""

    def __init__(self, fault: Transient) -> None:
        self.reason = fault.reason
        self.fault = fault.fault
        super().__init__(fault.reason)


class Store:
    """The job store behind a URL. Opened lazily, usable from several threads.

    ``on_wait(reason, seconds)`` is called before each pause of an outage with the seconds waited so far, and
    once with None when it is over. ``stop`` ends any waiting with Interrupted. ``as_it_is`` opens it to be looked
    at: a SQLite file keeps its journal mode.
    """

    def __init__(
        self,
        url: str,
        *,
        patience: Patience = COMMAND_PATIENCE,
        on_wait: Callable[[str | None, float], None] | None = None,
        stop: threading.Event | None = None,
        as_it_is: bool = False,
    ) -> None:
        self.url = parse_url(url)
        self.sqlite = is_sqlite(self.url)
        self._patience = patience
        self._on_wait = on_wait or (lambda _reason, _seconds: None)
        self._stop = stop or threading.Event()
        self._engine: Engine = connections.connect(self.url, as_it_is=as_it_is)

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def file(self) -> Path | None:
        """The SQLite file; None where the database is a server's."""
        return sqlite_path(self.url) if self.sqlite else None

    def prepare(self) -> None:
        """Wait for the database, and bring its schema up to date.

        Raises StoreUnreachable when patience ends, StoreMisconfigured when waiting cannot help.
        """
        self._patiently(lambda: migrate.ensure_current(self._engine, self.url))

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction, again and again until it is committed.

        A COMMIT whose answer was lost may have been durable, so ``work`` must be safe to replay.
        """
        return self._patiently(lambda: self._once(work, "BEGIN IMMEDIATE"))

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one short read transaction, with the same patience."""
        return self._patiently(lambda: self._once(work, "BEGIN"))

    @contextmanager
    def driver_connection(self) -> Iterator[psycopg.Connection[Any]]:
        """Lend psycopg's own connection for one transaction, for COPY. Committed when left without an error."""
        with self._engine.connect() as connection, connection.begin():
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
            yield driver

    def _once(self, work: Callable[[Connection], T], begin: str) -> T:
        with self._engine.connect() as connection, connection.begin():
            if self.sqlite:
                connection.execute(text(begin))
            return work(connection)

    def _patiently(self, attempt: Callable[[], T]) -> T:
        started = time.monotonic()
        waited = False

        def once() -> T:
            try:
                return attempt()
            except (DBAPIError, sqlite3.Error) as error:  # the latter of the backup before a migration
                fault = diagnose(error, self.url)
                if isinstance(fault, Transient):
                    if not self.sqlite or (isinstance(error, DBAPIError) and error.connection_invalidated):
                        self._engine.dispose()
                    raise _Passing(fault) from error
                if fault is None:
                    raise
                raise fault from error

        def announce(state: tenacity.RetryCallState) -> None:
            nonlocal waited
            waited = True
            error = state.outcome.exception() if state.outcome else None
            reason = error.reason if isinstance(error, _Passing) else "unknown"
            seconds = time.monotonic() - started
            log.warning("store.waiting reason=%s seconds=%.0f", reason, seconds)
            self._on_wait(reason, seconds)

        def pause(state: tenacity.RetryCallState) -> float:
            longest = self._patience.pause.total_seconds()
            return min(longest, 0.05 * 2.0 ** min(state.attempt_number, 10)) * random.uniform(0.7, 1.0)

        limit = self._patience.limit
        retrying = tenacity.Retrying(
            retry=tenacity.retry_if_exception_type(_Passing),
            stop=tenacity.stop_never if limit is None else tenacity.stop_after_delay(limit.total_seconds()),
            wait=pause,
            sleep=self._sleep,
            before_sleep=announce,
            reraise=True,
        )
        try:
            result = retrying(once)
        except _Passing as error:
            raise StoreUnreachable(
                f"the store {self} cannot be reached: {error.reason}",
                hint="vbatch doctor store",
                fault=error.fault,
            ) from error
        if waited:
            log.info("store.back seconds=%.1f", time.monotonic() - started)
            self._on_wait(None, time.monotonic() - started)
        return result

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Interrupted("stopped while waiting for the store")
