"""Tell a database that will come back from one that a person must mend.

libpq reports no SQLSTATE for a failed connect, so those are told apart by their words; everything that is not
known to be permanent is taken for transient, because waiting is the safe mistake.
"""

from __future__ import annotations

import os
import re
import shlex
import sqlite3
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import psycopg
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from vbatch.errors import StoreMisconfigured
from vbatch.store.url import shown, sqlite_path


class Fault(StrEnum):
    """What is wrong, for who must decide something by it; people read the words."""

    # These pass by themselves.
    AWAY = "away"  # refused, closed, reset, unknown host: nobody serves there yet
    STARTING = "starting"
    RECOVERING = "recovering"
    STOPPING = "stopping"
    FULL = "full"  # no free connection
    HANGING = "hanging"
    DISK = "disk"
    LOCKED = "locked"
    # These a person must mend.
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
    """Try again. ``reason`` completes "waiting for the store: …"."""

    reason: str
    fault: Fault = Fault.AWAY


# SQLSTATEs that pass by themselves (PostgreSQL appendix A): connection failures, a transaction that was left open
# for too long (we were frozen), a server that starts, stops or is full, and transactions that lost against another one.
_PASSING = re.compile(r"08|25P0[34]|57P0[1-5]|53|40001|40P01|55P03|58030")

_PERMANENT_STATES = {
    "28P01": ("wrong password", Fault.PASSWORD),
    "28000": ("this user may not connect", Fault.FORBIDDEN),
    "3D000": ("this database does not exist", Fault.NO_DATABASE),
    "42501": ("permission denied", Fault.FORBIDDEN),
    "25006": ("the database is read-only", Fault.READ_ONLY),
}

_PERMANENT_WORDS = (
    (re.compile(r"password authentication failed", re.I), "wrong password", Fault.PASSWORD),
    (re.compile(r"no password supplied|fe_sendauth", re.I), "the server wants a password", Fault.PASSWORD),
    (
        re.compile(r"database \"[^\"]*\" does not exist", re.I),
        "this database does not exist",
        Fault.NO_DATABASE,
    ),
    (re.compile(r"role \"[^\"]*\" does not exist", re.I), "this user does not exist", Fault.NO_USER),
    (
        re.compile(r"no pg_hba.conf entry|pg_hba.conf rejects", re.I),
        "pg_hba.conf does not let this user in from here",
        Fault.FORBIDDEN,
    ),
    (
        re.compile(r"permission denied for database", re.I),
        "permission denied: this user may not connect",
        Fault.FORBIDDEN,
    ),
    (
        re.compile(r"authentication failed|not permitted to log in", re.I),
        "this user may not connect",
        Fault.FORBIDDEN,
    ),
    (
        re.compile(
            r"invalid (connection|port|integer|\S+ value)|missing \"=\"|server does not support SSL", re.I
        ),
        "the URL is wrong",
        Fault.URL,
    ),
)

_TRANSIENT_WORDS = (
    (re.compile(r"starting up", re.I), "the server is starting up", Fault.STARTING),
    (
        re.compile(r"in recovery|recovery mode|not yet accepting", re.I),
        "the server is recovering after a crash",
        Fault.RECOVERING,
    ),
    (re.compile(r"shutting down", re.I), "the server is shutting down", Fault.STOPPING),
    (
        re.compile(r"too many clients|remaining connection slots", re.I),
        "the server has no free connection",
        Fault.FULL,
    ),
    (re.compile(r"connection refused", re.I), "nobody listens there (connection refused)", Fault.AWAY),
    (re.compile(r"no such file or directory", re.I), "nobody listens there (no socket file)", Fault.AWAY),
    (
        re.compile(r"server closed the connection|EOF", re.I),
        "the server closed the connection unexpectedly",
        Fault.AWAY,
    ),
    (re.compile(r"lock timeout", re.I), "another transaction holds what we need", Fault.LOCKED),
    (re.compile(r"idle-in-transaction", re.I), "the server has ended a transaction of ours", Fault.AWAY),
    (re.compile(r"timeout|timed out", re.I), "the server does not answer", Fault.HANGING),
    (
        re.compile(r"could not translate host name|failed to resolve host|name resolution|nodename", re.I),
        "its host name is not known yet",
        Fault.AWAY,
    ),
    (re.compile(r"No space left|disk full|53100", re.I), "the database's disk is full", Fault.DISK),
)

# SQLite result codes that pass: SQLITE_BUSY, LOCKED, IOERR, FULL, PROTOCOL (sqlite.org/rescode.html).
_SQLITE_PASSING = {
    5: ("another process holds its lock", Fault.LOCKED),
    6: ("it is locked", Fault.LOCKED),
    10: ("disk I/O error", Fault.DISK),
    13: ("the disk is full", Fault.DISK),
    15: ("it is locked", Fault.LOCKED),
}
_SQLITE_PERMANENT = {
    8: ("the file is read-only", Fault.READ_ONLY),
    11: ("the file is damaged", Fault.DAMAGED),
    14: ("the file cannot be opened", Fault.CANNOT_OPEN),
    23: ("permission denied", Fault.CANNOT_OPEN),
    26: ("the file is not a SQLite database", Fault.NOT_SQLITE),
}


def diagnose(error: Exception, url: URL) -> Transient | StoreMisconfigured | None:
    """Say what a database error means; None when it is a defect of ours, not a fault of the database."""
    original = error.orig if isinstance(error, DBAPIError) else error
    if isinstance(original, sqlite3.Error):
        return _diagnose_sqlite(original, url)
    if isinstance(original, psycopg.Error):
        return _diagnose_postgresql(original, url)
    return None


def _diagnose_sqlite(error: sqlite3.Error, url: URL) -> Transient | StoreMisconfigured | None:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in _SQLITE_PASSING:
        return Transient(*_SQLITE_PASSING[code])
    if code in _SQLITE_PERMANENT:
        path = sqlite_path(url)
        words, fault = _SQLITE_PERMANENT[code]
        if fault is Fault.CANNOT_OPEN and _may_be_opened(path):  # seen once, in the moment after a power cut
            return Transient(words, fault)
        return StoreMisconfigured(
            f"the store {path} cannot be used: {words}",
            hint=shlex.join(["ls", "-ld", str(path), str(path.parent)]),
            fault=fault,
        )
    return None


def _may_be_opened(path: Path) -> bool:
    """Whether nothing that a person could mend keeps us from this file and from a journal beside it."""
    return path.is_file() and os.access(path, os.R_OK | os.W_OK) and os.access(path.parent, os.W_OK | os.X_OK)


def _diagnose_postgresql(error: psycopg.Error, url: URL) -> Transient | StoreMisconfigured | None:
    words = str(error)
    state = error.sqlstate
    if state in _PERMANENT_STATES:
        return _refused(*_PERMANENT_STATES[state], url)
    if state is None:
        for pattern, meaning, fault in _PERMANENT_WORDS:
            if pattern.search(words):
                return _refused(meaning, fault, url)
    if state is not None and not _PASSING.match(state):
        return None
    if state is None and not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return None
    for pattern, meaning, fault in _TRANSIENT_WORDS:
        if pattern.search(words):
            return Transient(meaning, fault)
    return Transient(words.strip().splitlines()[-1] if words.strip() else "the connection was lost")


def _refused(meaning: str, fault: Fault, url: URL) -> StoreMisconfigured:
    hint = f"check VBATCH_DATABASE_URL with: psql '{shown(url.set(drivername='postgresql'))}'"
    return StoreMisconfigured(f"the store {shown(url)} refuses vbatch: {meaning}", hint=hint, fault=fault)
