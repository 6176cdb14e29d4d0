"""What the store needs of a database of any kind."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from sqlalchemy import URL, Connection, Engine, Table

from vbatch.errors import StoreMisconfigured
from vbatch.store.database.faults import Transient

Row = tuple[Any, ...]
Write = Callable[
    [Callable[[Connection], Any]], Any
]  # runs its argument in one transaction, until it is committed


@dataclass(frozen=True, slots=True, kw_only=True)
class BulkInsert:
    """Rows on their way into a table, each with a value for every column, in the order of the columns.

    ``write`` takes them, best about ``write_bytes`` at a time. They are durable once ``close`` has returned.
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

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Begin a transaction that reads, or that writes."""

    def diagnose(self, error: BaseException | None) -> Transient | StoreMisconfigured | None:
        """Return what an error of the driver means; None for a defect of vbatch."""

    def migration(self, engine: Engine) -> AbstractContextManager[Connection]:
        """Take the lock that all migrations of this database take, with a transaction to migrate in."""

    def back_up(self) -> None:
        """Keep a copy of the database as it is before a migration, where that is vbatch's duty."""

    def bulk_insert(self, engine: Engine, write: Write, table: Table) -> AbstractContextManager[BulkInsert]:
        """Insert very many rows, fast. A row whose key is there already may be given again."""

    def scratch(self, write: Write) -> AbstractContextManager[str]:
        """Yield the URL of an empty database in the same place, out of reach of this one; remove it afterwards."""
