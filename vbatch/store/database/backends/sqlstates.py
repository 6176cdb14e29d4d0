"""What the errors of a PostgreSQL server mean: which pass by themselves, and which a person must fix.

libpq reports no SQLSTATE for a failed connect, so those are known by their words; everything that is not known to be
permanent is taken for transient, because waiting is the safe mistake.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from vbatch.store.database.backends.protocol import Fault, Transient

if TYPE_CHECKING:
    import psycopg


def refusal(error: psycopg.Error) -> tuple[str, Fault] | None:
    """Return why the server refuses vbatch, in words and for code; None where it does not."""
    if error.sqlstate is None:
        return _meaning(str(error), _PERMANENT_WORDS)
    return _PERMANENT_STATES.get(error.sqlstate)


def passing(error: psycopg.Error) -> Transient | None:
    """Return what passes by itself; None where the error is no such thing."""
    import psycopg

    if error.sqlstate is None:
        passes = isinstance(error, psycopg.OperationalError | psycopg.InterfaceError)
    else:
        passes = _PASSING_STATES.match(error.sqlstate) is not None
    if not passes:
        return None
    return Transient(*_meaning(str(error), _TRANSIENT_WORDS) or (reason(error), Fault.AWAY))


def reason(error: psycopg.Error) -> str:
    """Return the server's message in one line: without its HINT, and without its DETAIL, which may hold a request.

    libpq's own messages name one server per line; the last one was tried last.
    """
    if error.diag.message_primary:
        return error.diag.message_primary
    lines = [
        line.strip()
        for line in str(error).splitlines()
        if line.strip() and not line.lstrip().startswith(("HINT:", "DETAIL:", "CONTEXT:"))
    ]
    return lines[-1] if lines else "the connection was lost"


# SQLSTATEs that pass by themselves (PostgreSQL appendix A): connection failures, a server that is read-only during a
# failover, a transaction that was left open for too long (by a frozen process), a statement that another user
# cancelled, a server that starts, stops or is full, and transactions that lost against another.
_PASSING_STATES = re.compile(r"08|25006|25P0[34]|57014|57P0[1-5]|53|40001|40P01|55P03|58030")

_PERMANENT_STATES = {
    "28P01": ("wrong password", Fault.PASSWORD),
    "28000": ("this user may not connect", Fault.FORBIDDEN),
    "3D000": ("this database does not exist", Fault.NO_DATABASE),
    "42501": ("permission denied", Fault.FORBIDDEN),
    "42704": ("it does not know a setting of the URL's options", Fault.URL),
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
    (
        r"read-only transaction",
        "the server is read-only now: a standby, or a failover that is not over",
        Fault.READ_ONLY,
    ),
    (
        r"canceling statement due to (statement timeout|user request)",
        "the server cancelled a statement of vbatch",
        Fault.AWAY,
    ),
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
