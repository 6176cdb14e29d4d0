"""PostgreSQL, through psycopg 3, which is imported where a server is spoken to: a SQLite store needs none of it."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, ClassVar

from sqlalchemy import Connection, Engine, Table, create_engine, event, text
from sqlalchemy.engine.interfaces import ExecutionContext
from sqlalchemy.exc import ArgumentError

from vbatch.errors import StoreMisconfigured
from vbatch.store.database.backends import sqlstates
from vbatch.store.database.backends.protocol import (
    READS_BODIES,
    BulkInsert,
    Fault,
    Row,
    Transient,
    Write,
    not_understood,
    parse,
    shown,
)

if TYPE_CHECKING:
    import psycopg

PORT = 5432
CONNECT_TIMEOUT_S = 10
# What holds in each transaction, whatever the server, the database or the role has set.
SETTINGS = {
    "synchronous_commit": "on",  # saved means saved
    "statement_timeout": "0",  # a COPY of a million lines is one statement
    "lock_timeout": "10s",  # then it is reported what is waited for, and tried again
    "idle_in_transaction_session_timeout": "30s",  # of a worker that was frozen: its locks must not stay
    "TimeZone": "UTC",
    "DateStyle": "ISO",  # psycopg reads no other
    "IntervalStyle": "postgres",
    # Large tables are read by their keys, a page at a time. Where the server has not counted them (after a restore, an
    # upgrade, a quick batch) it would take them for small, and read and sort a whole batch for every page.
    "enable_bitmapscan": "off",
    "enable_hashjoin": "off",
}
SETTINGS_17 = {"transaction_timeout": "0"}  # since PostgreSQL 17
BULK_BYTES = 16 << 10  # handed to COPY at once: few, for the server works while vbatch validates

_MIGRATION_LOCK = 0x76626174  # "vbat": the advisory lock of all migrations


class Postgresql:
    """A PostgreSQL server's database."""

    dialect: ClassVar[str] = "postgresql"
    schemes: ClassVar[frozenset[str]] = frozenset({"postgresql", "postgres", "postgresql+psycopg"})
    connections_fail_together: ClassVar[bool] = True
    file = None

    def __init__(self, given: str) -> None:
        if (
            given.partition("?")[0].count("@") > 1
        ):  # else a part of the password would be shown as the host's name
            raise not_understood(
                "the database URL has more than one @; within a user, password or database it is written %40"
            )
        self.url = parse(given).set(drivername="postgresql+psycopg")
        try:
            self.url.get_dialect()().create_connect_args(self.url)
        except (ArgumentError, ValueError):
            raise not_understood() from None
        self._accepted = False  # a good store was there once

    @property
    def address(self) -> tuple[str, int]:
        """Host and port; of several servers (libpq takes lists) those of the first one.

        The host is a folder for a socket, and empty for the socket that libpq takes by itself.
        """
        return self.url.host or self._option("host"), self.url.port or int(self._option("port") or PORT)

    def _option(self, name: str) -> str:
        given = self.url.query.get(name, "")
        return (given if isinstance(given, str) else given[0]).partition(",")[0]

    def engine(self, *, as_it_is: bool) -> Engine:  # noqa: ARG002  (a server keeps no state of connections)
        """Return an engine whose commits are durable, and whose waits and locks end.

        Nothing is set for a session: behind a pooler that lends a server's connection for one transaction
        (pgbouncer), the settings would reach other clients, and not the next transaction of vbatch. For the same
        reason there are no startup options and no named prepared statements.
        """
        defaults = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "vbatch",
            "keepalives_idle": 30,
            "tcp_user_timeout": 60_000,
        }
        own, startup = _split_options(self._options())
        engine = create_engine(
            self.url.difference_update_query(["options"]),
            pool_size=1,  # what a process keeps for itself; a server may have few for many workers
            max_overflow=15,  # closed after use
            pool_pre_ping=False,  # a dead connection is met by the retry that every transaction has
            pool_recycle=3600,
            hide_parameters=True,  # they are requests and answers
            isolation_level="AUTOCOMMIT",  # of the driver: each transaction begins with the statement below
            connect_args={
                **{name: value for name, value in defaults.items() if name not in self.url.query},
                **({"options": startup} if startup else {}),
                "client_encoding": "utf8",  # a database without an encoding (SQL_ASCII) would else give bytes
                "prepare_threshold": None,
            },
        )
        settings = own | SETTINGS
        begin, begin_17 = _begin(settings), _begin(settings | SETTINGS_17)

        @event.listens_for(engine, "begin")
        def begin_transaction(connection: Connection) -> None:
            driver: psycopg.Connection | None = connection.connection.driver_connection
            assert driver is not None
            statements = begin_17 if driver.info.server_version >= 170000 else begin
            connection.exec_driver_sql(statements, execution_options={"no_parameters": True})

        @event.listens_for(engine, "before_cursor_execute")
        def receive_bodies_as_they_are(
            _connection: Connection,
            cursor: psycopg.Cursor[Any],
            _statement: str,
            _parameters: Any,
            context: ExecutionContext,
            _many: bool,
        ) -> None:
            """As text they would take three times the memory."""
            if READS_BODIES in context.execution_options:
                from psycopg.pq import Format

                cursor.format = Format.BINARY

        return engine

    def _options(self) -> str:
        given = self.url.query.get("options", "")
        return given if isinstance(given, str) else " ".join(given)

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Nothing to do: every transaction of the engine begins alike, and rows are locked one by one."""

    def ended(self) -> None:
        """Nothing to do: a connection is one to the database that answered."""

    def renew(self) -> None:
        """Nothing to do: what is at the URL now is the store."""

    def accept(self) -> None:
        """Take note that the database is there: from then on one that is gone is waited for, as it may be restored."""
        self._accepted = True

    def diagnose(self, error: BaseException | None) -> Transient | StoreMisconfigured | None:
        """Return what an error of psycopg means."""
        import psycopg

        if not isinstance(error, psycopg.Error):
            return None
        if (refused := sqlstates.refusal(error)) is not None:
            meaning, fault = refused
            if self._accepted and fault is Fault.NO_DATABASE:
                return Transient(
                    f"the database {self.url.database} was dropped: restore a backup", Fault.REPLACED
                )
            return self._refused(meaning, fault)
        return sqlstates.passing(error)

    def describe(self, error: BaseException) -> str | None:
        """Return the SQLSTATE and the message, without DETAIL and CONTEXT, which hold values."""
        import psycopg

        if not isinstance(error, psycopg.Error):
            return None
        return f"{error.sqlstate or type(error).__name__}: {sqlstates.reason(error)}"

    def _refused(self, meaning: str, fault: Fault) -> StoreMisconfigured:
        hint = f"check VBATCH_DATABASE_URL with: psql '{shown(self.url)}'"
        return StoreMisconfigured(
            f"the store {shown(self.url)} refuses vbatch: {meaning}", hint=hint, fault=fault
        )

    @contextmanager
    def migration(self, engine: Engine) -> Iterator[Connection]:
        """Take the advisory lock for one transaction."""
        with engine.begin() as connection:
            connection.execute(text(f"SELECT pg_advisory_xact_lock({_MIGRATION_LOCK})"))
            yield connection

    def back_up(self) -> None:
        """Leave the backups of a server to the person who runs it."""

    @contextmanager
    def bulk_insert(self, engine: Engine, write: Write, table: Table) -> Iterator[BulkInsert]:  # noqa: ARG002
        """COPY in one transaction on a connection of its own: a crash leaves nothing."""
        with ExitStack() as stack:
            connection = stack.enter_context(engine.connect())
            stack.enter_context(connection.begin())
            driver: psycopg.Connection | None = connection.connection.driver_connection
            assert driver is not None
            cursor = stack.enter_context(driver.cursor())
            columns = ", ".join(table.columns.keys())
            copy = stack.enter_context(
                cursor.copy(f"COPY {table.name} ({columns}) FROM STDIN (FORMAT BINARY)".encode())
            )
            copy.set_types([column.type.compile(engine.dialect).lower() for column in table.columns])

            def write_rows(rows: list[Row]) -> None:
                for row in rows:
                    copy.write_row(row)

            yield BulkInsert(write=write_rows, write_bytes=BULK_BYTES, close=stack.close)

    @contextmanager
    def scratch(self, write: Write) -> Iterator[str]:
        """Make a schema of its own in this database."""
        schema = f"vbatch_selftest_{secrets.token_hex(4)}"
        write(lambda connection: connection.execute(text(f"CREATE SCHEMA {schema}")))
        try:
            inside = self.url.update_query_dict({"options": f"-csearch_path={schema}"})
            yield inside.render_as_string(hide_password=False)
        finally:
            write(lambda connection: connection.execute(text(f"DROP SCHEMA {schema} CASCADE")))


def _begin(settings: Mapping[str, str]) -> str:
    """Return the statements that begin a transaction with these settings, in one round trip."""
    quoted = {name: value.replace("'", "''") for name, value in settings.items()}
    values = ", ".join(f"set_config('{name}', '{value}', true)" for name, value in quoted.items())
    return f"BEGIN ISOLATION LEVEL READ COMMITTED; SELECT {values}"


def _split_options(options: str) -> tuple[dict[str, str], str]:
    """Return the settings in libpq's ``options``, which hold in each transaction, and options of another kind."""
    words = re.findall(r"(?:\\.|\S)+", options)
    settings: dict[str, str] = {}
    for setting in re.findall(r"(?:-c ?|--)((?:\\.|\S)+)", " ".join(words)):
        name, equals, value = re.sub(r"\\(.)", r"\1", setting).partition("=")
        if not equals or re.fullmatch(r"[A-Za-z_][\w.-]*", name) is None:
            return {}, options
        settings[name.replace("-", "_")] = value
    rest = re.sub(r"(?:-c ?|--)(?:\\.|\S)+", "", " ".join(words)).strip()
    return ({}, options) if rest else (settings, "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Server:
    """A server as it describes itself. ``unsafe`` are settings that break the promise that saved means saved.

    ``withheld`` are the tables that vbatch may not read and write, ``may_create`` is the right to make them.
    """

    version: str
    uptime: timedelta
    in_recovery: bool
    read_only: bool
    unsafe: tuple[str, ...]
    withheld: tuple[str, ...]
    may_create: bool


_WITHHELD = text(
    "SELECT relname FROM pg_class WHERE relkind IN ('r', 'p') AND relname = ANY(:names) "
    "AND pg_table_is_visible(oid) AND NOT (has_table_privilege(oid, 'SELECT') "
    "AND has_table_privilege(oid, 'INSERT') AND has_table_privilege(oid, 'UPDATE') "
    "AND has_table_privilege(oid, 'DELETE')) ORDER BY relname"
)


def examine(connection: Connection, *, tables: Collection[str]) -> Server:
    """Ask a server about itself, and about vbatch's rights on these tables."""

    def setting(name: str) -> str:
        return str(connection.execute(text("SELECT current_setting(:name)"), {"name": name}).scalar_one())

    uptime, recovery, may_create = connection.execute(
        text(
            "SELECT now() - pg_postmaster_start_time(), pg_is_in_recovery(), "
            "COALESCE(has_schema_privilege(current_schema(), 'CREATE'), false)"
        )
    ).one()
    withheld = connection.execute(_WITHHELD, {"names": list(tables)}).scalars()
    return Server(
        version=setting("server_version").split()[0],
        uptime=uptime,
        in_recovery=bool(recovery),
        read_only=setting("default_transaction_read_only") == "on",
        unsafe=tuple(name for name in ("fsync", "full_page_writes") if setting(name) == "off"),
        withheld=tuple(withheld),
        may_create=bool(may_create),
    )
