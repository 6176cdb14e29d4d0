"""``Store``: the open database. Every transaction of vbatch runs through here, and is retried here."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import TypeVar

import tenacity
from sqlalchemy import Connection, Engine, Table, select
from sqlalchemy.exc import DBAPIError

from vbatch.errors import Interrupted, StoreDefect, StoreMisconfigured, StoreReplaced, StoreUnreachable
from vbatch.store.database import migrate
from vbatch.store.database.backends import backend_of
from vbatch.store.database.backends.protocol import BulkInsert, Fault, NotThere, Transient, shown
from vbatch.store.database.columns import NOW

log = logging.getLogger(__name__)

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long to wait for a database that is unreachable, and how long to pause between two tries at most."""

    limit: timedelta | None
    pause: timedelta


COMMAND_PATIENCE = Patience(limit=timedelta(seconds=60), pause=timedelta(seconds=2))  # some 30 tries
READ_PATIENCE = Patience(limit=timedelta(seconds=9), pause=timedelta(seconds=1))  # 10 seconds in all
WORKER_PATIENCE = Patience(limit=None, pause=timedelta(seconds=3))
LONGEST_RESTORE = timedelta(minutes=5)  # a file that is damaged for longer is not being copied
NO_PATIENCE = Patience(limit=timedelta(0), pause=timedelta(0))


_OPENED_ANEW = (Fault.MOVED, Fault.REPLACED, Fault.FOREIGN_JOURNAL, Fault.DAMAGED, Fault.NOT_SQLITE)


class _Passing(Exception):
    """A fault that passes by itself."""

    def __init__(self, fault: Transient) -> None:
        self.fault = fault
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
        self.backend = backend_of(url)
        self.url = self.backend.url
        self._patience = patience
        self._on_wait = on_wait or (lambda _reason, _seconds: None)
        self._stop = stop or threading.Event()
        self._engine: Engine = self.backend.engine(as_it_is=as_it_is)
        self._opened = False  # a good store was there: none is made in its place

    def __str__(self) -> str:
        return shown(self.url)

    @property
    def file(self) -> Path | None:
        """The file that holds the database; None where a server does."""
        return self.backend.file

    def prepare(self) -> None:
        """Wait for the database, and bring its schema up to date.

        After StoreReplaced it takes what is there now, once that is a store. Raises StoreUnreachable when patience
        ends, StoreMisconfigured when waiting cannot help.
        """
        self._engine.dispose()
        self.backend.renew()
        self._patiently(lambda: migrate.ensure_current(self._engine, self.backend, create=not self._opened))
        self.backend.accept()
        self._opened = True

    def close(self) -> None:
        """Close every connection."""
        self._engine.dispose()
        self.backend.renew()

    def write(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one transaction, again and again until it is committed.

        A COMMIT whose answer was lost may have been durable, so ``work`` must be safe to replay.
        """
        return self._patiently(lambda: self._once(work, write=True))

    def read(self, work: Callable[[Connection], T]) -> T:
        """Run ``work`` in one short read transaction, with the same patience."""
        return self._patiently(lambda: self._once(work, write=False))

    def now(self) -> datetime:
        """Return the time by the database's clock, which is the same for all hosts; of a SQLite file, this host's."""
        return self.read(lambda connection: connection.execute(select(NOW)).scalar_one())

    @contextmanager
    def bulk_insert(self, table: Table) -> Iterator[BulkInsert]:
        """Insert very many rows, fast.

        Raises StoreUnreachable, without a retry, where the database becomes unreachable in the middle.
        """
        try:
            with self.backend.bulk_insert(self._engine, self.write, table) as inserting:
                yield inserting
        except Exception as error:
            fault = self._diagnose(error)
            if isinstance(fault, Transient):
                raise self._unreachable(
                    "became unreachable while the batch was being stored", fault
                ) from None
            if (known := fault or self._defect(error)) is None:
                raise
            raise known from None  # the driver's own text holds rows

    def _once(self, work: Callable[[Connection], T], *, write: bool) -> T:
        with self._engine.connect() as connection, connection.begin():
            self.backend.begin(connection, write=write)
            result = work(connection)
        self.backend.ended()
        return result

    def _diagnose(self, error: Exception) -> Transient | StoreMisconfigured | None:
        if isinstance(error, NotThere):
            return Transient(error.reason, error.fault, error.hint)
        return self.backend.diagnose(error.orig if isinstance(error, DBAPIError) else error)

    def _defect(self, error: Exception) -> StoreDefect | StoreReplaced | None:
        """Return an error of the database that only a defect of vbatch explains; None for one of another kind.

        Or the tables are not vbatch's any more: the store was replaced in its place, or is being restored.
        """
        driver = error.orig if isinstance(error, DBAPIError) else error
        if driver is None or (words := self.backend.describe(driver)) is None:
            return None
        if self._opened and not self._has_its_tables():
            return StoreReplaced(
                f"the tables of the store {self} were removed or replaced while vbatch used it"
            )
        return StoreDefect(words + (f" [{error.statement}]" if isinstance(error, DBAPIError) else ""))

    def _has_its_tables(self) -> bool:
        try:
            with self._engine.connect() as connection:
                return migrate.revision(connection) == migrate.CURRENT
        except Exception:  # it will be met again, by whoever can say what it is
            return True

    def _unreachable(self, what: str, fault: Transient) -> StoreUnreachable:
        return StoreUnreachable(
            f"the store {self} {what}: {fault.reason}",
            hint=fault.hint or "vbatch doctor store",
            fault=fault.fault,
        )

    def _patiently(self, attempt: Callable[[], T]) -> T:
        started = time.monotonic()
        waited = False

        def once() -> T:
            try:
                return attempt()
            except Exception as error:
                fault = self._diagnose(error)
                if isinstance(fault, Transient):
                    # Where the server has no more to give, those that this process has are good, and the last.
                    together = self.backend.connections_fail_together and fault.fault is not Fault.FULL
                    if together or fault.fault in _OPENED_ANEW:
                        self._engine.dispose()
                    if fault.lasting is not None and not self._bears(fault.fault, time.monotonic() - started):
                        raise fault.lasting from None
                    raise _Passing(fault) from None
                if (known := fault or self._defect(error)) is None:
                    raise
                raise known from None  # the driver's own text holds rows

        def announce(state: tenacity.RetryCallState) -> None:
            nonlocal waited
            waited = True
            error = state.outcome.exception() if state.outcome else None
            reason = str(error)
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
            raise self._unreachable("cannot be reached", error.fault) from None
        if waited:
            log.info("store.back seconds=%.1f", time.monotonic() - started)
            self._on_wait(None, time.monotonic() - started)
        return result

    def _bears(self, fault: Fault, seconds: float) -> bool:
        """Whether to wait for so long for what a person must fix: as a worker, for a backup that takes its place."""
        as_worker = self._patience.limit is None
        return as_worker and (fault is Fault.REPLACED or seconds < LONGEST_RESTORE.total_seconds())

    def _sleep(self, seconds: float) -> None:
        if self._stop.wait(seconds):
            raise Interrupted("stopped while waiting for the store")


@contextmanager
def scratch_store(url: str) -> Iterator[str]:
    """Make an empty store for a trial in the place of the one of this URL, and yield its URL; remove it afterwards.

    The user's batches are out of reach. Raises StoreUnreachable, StoreMisconfigured.
    """
    with closing(Store(url)) as owner, owner.backend.scratch(owner.write) as inside:
        yield inside
