"""What the store needs of a database of any kind: its URL, its faults, and what a backend does."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, ClassVar, Protocol

from sqlalchemy import URL, Connection, Engine, Table, make_url
from sqlalchemy.exc import ArgumentError

from vbatch.errors import StoreMisconfigured

_SECRETS = ("password", "sslpassword")  # libpq takes these from the options of a URL too
_HINT = "set VBATCH_DATABASE_URL to sqlite:////path/to/vbatch.db or postgresql://user:password@host/database"
READS_BODIES = "vbatch_reads_bodies"  # the execution option of a statement whose results may be large
Row = tuple[Any, ...]
Write = Callable[
    [Callable[[Connection], Any]], Any
]  # runs its argument in one transaction, until it is committed


class Fault(StrEnum):
    """What is wrong, for code that must decide something by it; people read the words beside it."""

    # These pass by themselves.
    AWAY = "away"  # refused, closed, reset, unknown host: no server listens there yet
    STARTING = "starting"
    RECOVERING = "recovering"
    STOPPING = "stopping"
    FULL = "full"  # no free connection
    HANGING = "hanging"
    DISK = "disk"
    LOCKED = "locked"
    MOVED = "moved"  # the file, or its folder, is not where it was opened
    REPLACED = "replaced"
    FOREIGN_JOURNAL = "foreign_journal"
    # These a person must fix.
    PASSWORD = "password"
    FORBIDDEN = "forbidden"
    NO_DATABASE = "no_database"
    NO_USER = "no_user"
    URL = "url"
    READ_ONLY = "read_only"
    DAMAGED = "damaged"
    CANNOT_OPEN = "cannot_open"
    NOT_SQLITE = "not_sqlite"


@dataclass(frozen=True, slots=True)
class Transient:
    """Try again. ``reason`` completes "waiting for the store: …".

    ``lasting`` is what it is where it does not pass soon, None where it is waited for like any outage.
    """

    reason: str
    fault: Fault = Fault.AWAY
    hint: str | None = None
    lasting: StoreMisconfigured | None = None


class NotThere(Exception):
    """The store that was open is not at its place any more, or what is there is not whole yet: it is waited for.

    ``reason`` completes "waiting for the store: …".
    """

    def __init__(self, reason: str, fault: Fault, hint: str | None = None) -> None:
        self.reason = reason
        self.fault = fault
        self.hint = hint
        super().__init__(reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkInsert:
    """Rows on their way into a table, each with a value for every column, in the order of the columns.

    ``write`` takes a list of them to keep, best about ``write_bytes`` at a time. They are durable once ``close`` has
    returned.
    """

    write: Callable[[list[Row]], None]
    write_bytes: int
    close: Callable[[], None]


class Backend(Protocol):
    """One database. ``url`` has its driver made explicit."""

    dialect: ClassVar[str]  # SQLAlchemy's name of the kind
    schemes: ClassVar[frozenset[str]]  # how its URLs begin
    connections_fail_together: ClassVar[bool]  # whether a transient fault of one concerns all that are pooled

    def __init__(self, given: str) -> None:
        """Raises StoreMisconfigured for a URL that can only be a mistake."""

    @property
    def url(self) -> URL:
        """The URL that SQLAlchemy connects to."""

    @property
    def file(self) -> Path | None:
        """The file that holds the database; None where a server does."""

    @property
    def address(self) -> tuple[str, int] | None:
        """Host and port of the server; None for a file."""

    def engine(self, *, as_it_is: bool) -> Engine:
        """Return an engine that keeps the promises: durable commits, private files. No connection is made yet.

        ``as_it_is``: the database is only looked at, and is left as it was found.
        """

    def renew(self) -> None:
        """Take whatever is at the URL for the store from the next connection on."""

    def accept(self) -> None:
        """Take note that what is there is a good store: only this one is used from now on."""

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Begin a transaction that reads, or that writes. Raises NotThere, StoreReplaced."""

    def ended(self) -> None:
        """Look whether the transaction that has just ended was one of the store. Raises NotThere, StoreReplaced."""

    def diagnose(self, error: BaseException | None) -> Transient | StoreMisconfigured | None:
        """Return what an error of the driver means; None for a defect of vbatch."""

    def describe(self, error: BaseException) -> str | None:
        """Return an error of the driver without the values of rows in it; None for any other error."""

    def migration(self, engine: Engine) -> AbstractContextManager[Connection]:
        """Take the lock that all migrations of this database take, with a transaction to migrate in."""

    def back_up(self) -> None:
        """Keep a copy of the database as it is before a migration, where that is vbatch's duty."""

    def bulk_insert(self, engine: Engine, write: Write, table: Table) -> AbstractContextManager[BulkInsert]:
        """Insert very many rows, fast. A row whose key is there already may be given again."""

    def scratch(self, write: Write) -> AbstractContextManager[str]:
        """Yield the URL of an empty database in the same place, out of reach of this one; remove it afterwards."""


def parse(url: str) -> URL:
    """Split a URL into its parts. Raises StoreMisconfigured."""
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise not_understood() from None


def shown(url: URL) -> str:
    """Return the URL as a person writes it, without the driver; and without its password, wherever that is."""
    return (
        url.set(drivername=url.get_backend_name())
        .difference_update_query(_SECRETS)
        .render_as_string(hide_password=True)
    )


def not_understood(problem: str = "the database URL cannot be understood") -> StoreMisconfigured:
    """Return the error for a URL with this problem."""
    return StoreMisconfigured(problem, hint=_HINT)
