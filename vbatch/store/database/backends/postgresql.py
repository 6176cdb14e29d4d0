"""PostgreSQL, through psycopg 3."""

from __future__ import annotations

import re
import secrets
from collections.abc import Collection, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import ClassVar

import psycopg
from sqlalchemy import Connection, Engine, Table, create_engine, text
from sqlalchemy.exc import ArgumentError

from vbatch.errors import StoreMisconfigured
from vbatch.store.database.backends.protocol import BulkInsert, Row, Write
from vbatch.store.database.faults import Fault, Transient
from vbatch.store.database.url import not_understood, parse, shown

PORT = 5432
CONNECT_TIMEOUT_S = 10
LOCK_TIMEOUT_MS = 10_000  # then it is reported what is waited for, and tried again
IDLE_IN_TRANSACTION_MS = 30_000  # of a worker that was frozen, or lost its power: its locks must not stay
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
        """Return an engine whose commits are durable, and whose waits and locks end."""
        options = (
            f"-c synchronous_commit=on -c timezone=UTC -c lock_timeout={LOCK_TIMEOUT_MS}"
            f" -c idle_in_transaction_session_timeout={IDLE_IN_TRANSACTION_MS}"
        )
        given = self.url.query.get("options")
        if isinstance(given, str):  # the user's own settings hold too, except for these
            options = f"{given} {options}"
        defaults = {
            "connect_timeout": CONNECT_TIMEOUT_S,
            "application_name": "vbatch",
            "keepalives_idle": 30,
            "tcp_user_timeout": 60_000,
        }
        return create_engine(
            self.url.difference_update_query(["options"]),
            pool_size=4,
            pool_pre_ping=False,  # a dead connection is met by the retry that every transaction has
            pool_recycle=3600,
            connect_args={
                **{name: value for name, value in defaults.items() if name not in self.url.query},
                "client_encoding": "utf8",  # a database without an encoding (SQL_ASCII) would else give bytes
                "options": options,
            },
        )

    def begin(self, connection: Connection, *, write: bool) -> None:
        """Nothing to do: the driver begins by itself, and rows are locked one by one."""

    def diagnose(self, error: BaseException | None) -> Transient | StoreMisconfigured | None:
        """Return what an error of psycopg means.

        libpq reports no SQLSTATE for a failed connect, so those are known by their words; everything that is not
        known to be permanent is taken for transient, because waiting is the safe mistake.
        """
        if not isinstance(error, psycopg.Error):
            return None
        words, state = str(error), error.sqlstate
        refused = _meaning(words, _PERMANENT_WORDS) if state is None else _PERMANENT_STATES.get(state)
        if refused is not None:
            return self._refused(*refused)
        if state is None:
            passes = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
        else:
            passes = _PASSING_STATES.match(state) is not None
        if not passes:
            return None
        last_line = words.strip().splitlines()[-1] if words.strip() else "the connection was lost"
        return Transient(*_meaning(words, _TRANSIENT_WORDS) or (last_line, Fault.AWAY))

    def _refused(self, meaning: str, fault: Fault) -> StoreMisconfigured:
        hint = f"check VBATCH_DATABASE_URL with: psql '{shown(self.url.set(drivername='postgresql'))}'"
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
            driver = connection.connection.driver_connection
            assert isinstance(driver, psycopg.Connection)
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


# SQLSTATEs that pass by themselves (PostgreSQL appendix A): connection failures, a transaction that was left open for
# too long (by a frozen process), a server that starts, stops or is full, and transactions that lost against another.
_PASSING_STATES = re.compile(r"08|25P0[34]|57P0[1-5]|53|40001|40P01|55P03|58030")

_PERMANENT_STATES = {
    "28P01": ("wrong password", Fault.PASSWORD),
    "28000": ("this user may not connect", Fault.FORBIDDEN),
    "3D000": ("this database does not exist", Fault.NO_DATABASE),
    "42501": ("permission denied", Fault.FORBIDDEN),
    "25006": ("the database is read-only", Fault.READ_ONLY),
}

_PERMANENT_WORDS = (
    (r"password authentication failed", "wrong password", Fault.PASSWORD),
    (r"no password supplied|fe_sendauth", "the server requires a password", Fault.PASSWORD),
    (r"database \"[^\"]*\" does not exist", "this database does not exist", Fault.NO_DATABASE),
    (r"role \"[^\"]*\" does not exist", "this user does not exist", Fault.NO_USER),
    (
        r"no pg_hba.conf entry|pg_hba.conf rejects",
        "pg_hba.conf does not let this user in from here",
        Fault.FORBIDDEN,
    ),
    (
        r"permission denied for database",
        "permission denied: this user may not connect",
        Fault.FORBIDDEN,
    ),
    (r"authentication failed|not permitted to log in", "this user may not connect", Fault.FORBIDDEN),
    (
        r"invalid (connection|port|integer|\S+ value)|missing \"=\"|server does not support SSL",
        "the URL is wrong",
        Fault.URL,
    ),
)

_TRANSIENT_WORDS = (
    (r"starting up", "the server is starting up", Fault.STARTING),
    (
        r"in recovery|recovery mode|not yet accepting",
        "the server is recovering after a crash",
        Fault.RECOVERING,
    ),
    (r"shutting down", "the server is shutting down", Fault.STOPPING),
    (r"too many clients|remaining connection slots", "the server has no free connection", Fault.FULL),
    (r"connection refused", "no server listens there (connection refused)", Fault.AWAY),
    (r"no such file or directory", "no server listens there (no socket file)", Fault.AWAY),
    (
        r"server closed the connection|EOF",
        "the server closed the connection unexpectedly",
        Fault.AWAY,
    ),
    (r"lock timeout", "another transaction holds a lock that vbatch needs", Fault.LOCKED),
    (r"idle-in-transaction", "the server has ended a transaction of vbatch", Fault.AWAY),
    (r"timeout|timed out", "the server does not answer", Fault.HANGING),
    (
        r"could not translate host name|failed to resolve host|name resolution|nodename",
        "its host name is not known yet",
        Fault.AWAY,
    ),
    (r"No space left|disk full|53100", "the database's disk is full", Fault.DISK),
)


def _meaning(words: str, known: Iterable[tuple[str, str, Fault]]) -> tuple[str, Fault] | None:
    for pattern, meaning, fault in known:
        if re.search(pattern, words, re.I):
            return meaning, fault
    return None
