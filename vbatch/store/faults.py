"""Tell a database that will come back from one that a person must mend.

libpq reports no SQLSTATE for a failed connect, so those are told apart by their words; everything that is not
known to be permanent is taken for transient, because waiting is the safe mistake.
"""

from __future__ import annotations

import re
import sqlite3
from dataclasses import dataclass

import psycopg
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError

from vbatch.errors import StoreMisconfigured
from vbatch.store.url import shown, sqlite_path


@dataclass(frozen=True, slots=True)
class Transient:
    """Try again. ``reason`` completes "waiting for the store: …"."""

    reason: str


# SQLSTATEs that pass by themselves (PostgreSQL appendix A): connection failures, a server that starts, stops or
# is full, and transactions that lost against another one.
_PASSING = re.compile(r"08|57P0[1-5]|53|40001|40P01|55P03|58030")

_PERMANENT_STATES = {
    "28P01": "wrong password",
    "28000": "this user may not connect",
    "3D000": "this database does not exist",
    "42501": "permission denied",
    "25006": "the database is read-only",
}

_PERMANENT_WORDS = (
    (re.compile(r"password authentication failed", re.I), "wrong password"),
    (re.compile(r"no password supplied|fe_sendauth", re.I), "the server wants a password"),
    (re.compile(r"database \"[^\"]*\" does not exist", re.I), "this database does not exist"),
    (re.compile(r"role \"[^\"]*\" does not exist", re.I), "this user does not exist"),
    (
        re.compile(r"no pg_hba.conf entry|pg_hba.conf rejects", re.I),
        "pg_hba.conf does not let this user in from here",
    ),
    (re.compile(r"permission denied for database", re.I), "permission denied: this user may not connect"),
    (re.compile(r"authentication failed|not permitted to log in", re.I), "this user may not connect"),
    (
        re.compile(
            r"invalid (connection|port|integer|\S+ value)|missing \"=\"|server does not support SSL", re.I
        ),
        "the URL is wrong",
    ),
)

_TRANSIENT_WORDS = (
    (re.compile(r"starting up", re.I), "the server is starting up"),
    (
        re.compile(r"in recovery|recovery mode|not yet accepting", re.I),
        "the server is recovering after a crash",
    ),
    (re.compile(r"shutting down", re.I), "the server is shutting down"),
    (re.compile(r"too many clients|remaining connection slots", re.I), "the server has no free connection"),
    (re.compile(r"connection refused", re.I), "nobody listens there (connection refused)"),
    (re.compile(r"no such file or directory", re.I), "nobody listens there (no socket file)"),
    (re.compile(r"server closed the connection|EOF", re.I), "the server closed the connection unexpectedly"),
    (re.compile(r"timeout|timed out", re.I), "the server does not answer"),
    (
        re.compile(r"could not translate host name|failed to resolve host|name resolution|nodename", re.I),
        "its host name is not known yet",
    ),
    (re.compile(r"No space left|disk full|53100", re.I), "the database's disk is full"),
)

# SQLite result codes that pass: SQLITE_BUSY, LOCKED, IOERR, FULL, PROTOCOL (sqlite.org/rescode.html).
_SQLITE_PASSING = {
    5: "another process holds its lock",
    6: "it is locked",
    10: "disk I/O error",
    13: "the disk is full",
    15: "it is locked",
}
_SQLITE_PERMANENT = {
    8: "the file is read-only",
    11: "the file is damaged",
    14: "the file cannot be opened",
    23: "permission denied",
    26: "the file is not a SQLite database",
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
        return Transient(_SQLITE_PASSING[code])
    if code in _SQLITE_PERMANENT:
        path = sqlite_path(url)
        return StoreMisconfigured(
            f"The store {path} cannot be used: {_SQLITE_PERMANENT[code]}.", hint=f"ls -l {path} {path.parent}"
        )
    return None


def _diagnose_postgresql(error: psycopg.Error, url: URL) -> Transient | StoreMisconfigured | None:
    words = str(error)
    state = error.sqlstate
    if state in _PERMANENT_STATES:
        return _refused(_PERMANENT_STATES[state], url)
    if state is None:
        for pattern, meaning in _PERMANENT_WORDS:
            if pattern.search(words):
                return _refused(meaning, url)
    if state is not None and not _PASSING.match(state):
        return None
    if state is None and not isinstance(error, psycopg.OperationalError | psycopg.InterfaceError):
        return None
    for pattern, meaning in _TRANSIENT_WORDS:
        if pattern.search(words):
            return Transient(meaning)
    return Transient(words.strip().splitlines()[-1] if words.strip() else "the connection was lost")


def _refused(meaning: str, url: URL) -> StoreMisconfigured:
    hint = f"check VBATCH_DATABASE_URL with: psql '{shown(url.set(drivername='postgresql'))}'"
    return StoreMisconfigured(f"The store {shown(url)} refuses vbatch: {meaning}.", hint=hint)
