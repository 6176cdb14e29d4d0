"""Checks of the store: whether it answers, why not, and whether it is sound, durable and writable."""

from __future__ import annotations

import re
import shlex
import sqlite3
from collections.abc import Iterator
from datetime import timedelta

from vbatch.doctor.checks import sqlite
from vbatch.doctor.checks.schema import SCHEMA, SCHEMA_NEWER, of_another_version
from vbatch.doctor.checks.sqlite import DURABILITY, JOURNAL_MODE, READ_ONLY
from vbatch.doctor.facts import Facts, NothingStored
from vbatch.doctor.findings import Check, Entry, Finding, Level
from vbatch.errors import ExitCode, StoreMisconfigured, StoreUnreachable
from vbatch.store import Store, hosting, overview
from vbatch.store.database import migrate
from vbatch.store.database.backends import backend_of
from vbatch.store.database.backends.postgresql import Server
from vbatch.store.database.backends.protocol import shown
from vbatch.store.hosting import Database, Kind
from vbatch.system import processes
from vbatch.text import duration

REACH = Entry(id="store.reach", means="the store answers, and vbatch may use it")
EMPTY = Entry(id="store.empty", means="there is no store yet; the first batch makes it")
AWAY = Entry(
    id="store.away",
    means="no server answers where the URL points; no batch is accepted or answered before one does",
    advice="start the database; after a boot it may only need time: vbatch doctor --wait 60s",
)
HANGING = Entry(
    id="store.hanging",
    means="a server accepts the connection and does not answer; a firewall or a full disk does this",
    commands=("vbatch doctor store --wait 60s",),
    advice="look at the log of the server",
)
PASSWORD = Entry(
    id="store.password",
    means="the server does not accept the password, or requires one; waiting will not help",
    advice="set VBATCH_DATABASE_URL, or the password file of libpq (~/.pgpass)",
)
FORBIDDEN = Entry(
    id="store.forbidden",
    means="the server refuses this user: pg_hba.conf, or a missing right; waiting will not help",
    advice="add a line to pg_hba.conf, or GRANT what is missing",
)
CONTAINER = Entry(
    id="store.container",
    means="the database runs in a container that is not started again after a reboot",
    advice="docker update --restart unless-stopped NAME",
)
STATE = Entry(
    id="store.state",
    means="whether the store is sound; if it is not, its queue is neither reported nor repaired",
    advice="fix what the other findings of the store name",
)

_WAIT = ("vbatch doctor store --wait 60s",)

# By the fault that a connection meets; those of a file stand beside its own checks.
FAULTS = {
    entry.id.removeprefix("store."): entry
    for entry in (
        AWAY,
        HANGING,
        Entry(
            id="store.starting",
            means="the server is starting and will answer in a moment",
            commands=_WAIT,
        ),
        Entry(
            id="store.recovering",
            means="the server replays its log after a crash, which can take minutes, and answers when it is done",
            commands=_WAIT,
        ),
        Entry(
            id="store.stopping",
            means="the server is shutting down",
            commands=_WAIT,
            advice="start it again, or wait",
        ),
        Entry(
            id="store.full",
            means="the server has no free connection; vbatch needs 3 per process",
            commands=_WAIT,
            advice="raise max_connections, or end what holds them",
        ),
        Entry(
            id="store.disk",
            means="the disk of the store is full or fails; nothing can be saved until that is fixed",
            commands=_WAIT,
            advice="free some space; look at dmesg",
        ),
        PASSWORD,
        FORBIDDEN,
        Entry(
            id="store.no_database",
            means="the server has no database of that name; waiting will not help",
            advice="createdb NAME",
        ),
        Entry(
            id="store.no_user",
            means="the server has no user of that name; waiting will not help",
            advice="createuser NAME",
        ),
        Entry(
            id="store.url",
            means="the URL of the store is not valid; waiting will not help",
            commands=("export VBATCH_DATABASE_URL=postgresql://user:password@host/database",),
            advice="or a file: sqlite:////path/to/vbatch.db",
        ),
        *sqlite.FAULTS,
    )
}


def _reach(facts: Facts) -> Iterator[Finding]:
    """Connect as a command does; a probe that only looks for a listener says OK to a wrong password."""
    try:
        found = list(_unopened(facts))
        yield from found
        if any(finding.level is Level.FAIL for finding in found):
            return
        store = facts.store
        revision = overview.revision(store)
    except NothingStored:
        yield EMPTY.info("there is no store yet", why="the first batch makes it")
        return
    except StoreUnreachable as error:
        yield _unreachable(facts, error)
        return
    except StoreMisconfigured as error:
        yield _misconfigured(facts, error)
        return
    if revision is None:
        yield EMPTY.info(f"{store} answers and is empty", why="the first batch makes the tables")
    elif revision != migrate.CURRENT:
        yield of_another_version(store, revision)
    else:
        yield REACH.ok(f"{_called(store)} answers")


def _unopened(facts: Facts) -> Iterator[Finding]:
    file = backend_of(facts.settings.store_url).file
    if file is not None:
        yield from sqlite.unopened(file)


def _called(store: Store) -> str:
    if store.file is not None:
        return f"SQLite {sqlite3.sqlite_version} ({store.file})"
    seen = overview.server(store)
    where = hosting.recognise(str(store)).where
    return f"PostgreSQL {seen.version} at {where}, up for {duration(seen.uptime.total_seconds())},"


def _unreachable(facts: Facts, error: StoreUnreachable) -> Finding:
    where = hosting.recognise(str(facts.store))
    entry = FAULTS[error.fault]
    return entry.fail(
        error.message.rstrip("."),
        why=entry.means + _so_far(facts, error.fault, where),
        commands=_start(where) if entry is AWAY else _WAIT,
        passing=True,
        exit_code=ExitCode.STORE_UNREACHABLE,
    )


def _so_far(facts: Facts, fault: str, where: Database) -> str:
    """Say for how long: by the age of that process of a server on this machine, or of this run."""
    if fault not in ("starting", "recovering", "stopping"):
        return ""
    found = [] if where.kind is Kind.REMOTE else processes.entitled(_STARTUP)
    age = processes.age(found[0]) if len(found) == 1 else None  # of several, which one is unknown
    if age is not None:
        return f"; for {duration(age.total_seconds())} so far"
    return f"; for {duration(looked)} at least" if (looked := facts.looked.total_seconds()) >= 1 else ""


_STARTUP = re.compile(r"postgres: (?:.*: )?startup\b")  # the process that starts a server and replays its log


def _start(where: Database) -> tuple[str, ...]:
    """Return how a database of this kind is started, or looked at."""
    match where.kind:
        case Kind.REMOTE:
            return (f"ping {where.where.rpartition(':')[0]}   # then look at the server",)
        case Kind.CONTAINER if where.container is not None:
            return (f"{where.container.engine} logs {where.container.name}",)
        case Kind.SERVICE if where.unit is not None:
            return (f"systemctl status {where.unit}",)
        case Kind.EMBEDDED:
            return _WAIT
    return ("sudo systemctl start postgresql   # or: docker ps --all, docker start NAME",)


def _misconfigured(facts: Facts, error: StoreMisconfigured) -> Finding:
    entry = FAULTS[error.fault]
    commands: tuple[str, ...]
    match error.fault:
        case "damaged" if facts.store.file is not None:
            commands = (sqlite.rescue(facts.store.file),)
        case "url":
            commands = entry.commands
        case "password" | "forbidden" | "no_database" | "no_user":
            commands = (_psql(facts.store),)
        case _:
            commands = (error.hint,) if error.hint else ()
    return entry.fail(error.message.rstrip("."), commands=commands, exit_code=ExitCode.MISCONFIGURED)


def _psql(store: Store, *command: str) -> str:
    """Return how a person connects as vbatch does; psql then asks for the password."""
    url = shown(store.url.set(drivername="postgresql")).replace(":***@", "@")
    return shlex.join(["psql", url, *(part for line in command for part in ("-c", line))])


def _state(facts: Facts) -> Iterator[Finding]:
    """Look at how durable and how writable the store is."""
    store = facts.store
    if store.file is not None:
        found = list(sqlite.look(store.file))
        yield from found or [sqlite.sound(store.file)]
        return
    seen = overview.server(store)
    if seen.in_recovery or seen.read_only:
        reason = "it is a standby" if seen.in_recovery else "default_transaction_read_only is on"
        yield READ_ONLY.fail(
            f"{store} can only be read: {reason}",
            commands=(_psql(store, "SHOW default_transaction_read_only"),),
            exit_code=ExitCode.MISCONFIGURED,
        )
    yield from _rights(store, seen)
    if seen.unsafe:
        yield DURABILITY.fail(
            f"the server runs with {' and '.join(f'{name}=off' for name in seen.unsafe)}",
            commands=tuple(_psql(store, f"ALTER SYSTEM SET {name} = on") for name in seen.unsafe),
        )
    else:
        yield DURABILITY.ok(
            "a saved result survives a power cut (fsync, full_page_writes, synchronous_commit)"
        )
    where = hosting.recognise(str(store))
    if where.hint is not None:
        yield CONTAINER.warn(where.words, commands=(where.hint,))


def _rights(store: Store, seen: Server) -> Iterator[Finding]:
    """Check that vbatch may do what the next command will do; connecting shows nothing of it."""
    makes_tables = overview.revision(store) != migrate.CURRENT
    if makes_tables and not seen.may_create:
        what, right = f"vbatch may not make tables in {store}", "CREATE ON SCHEMA public"
    elif seen.withheld:
        tables = ", ".join(seen.withheld)
        what, right = (
            f"vbatch may not read and write {tables} in {store}",
            f"SELECT, INSERT, UPDATE, DELETE ON {tables}",
        )
    else:
        return
    role = store.url.username or "NAME"
    yield FORBIDDEN.fail(
        what,
        why="another user owns them, or the database",
        commands=(shlex.join(["psql", "-c", f'GRANT {right} TO "{role}"', store.url.database or ""]),),
        exit_code=ExitCode.MISCONFIGURED,
    )


CHECKS = (
    Check(
        name="store.reach",
        finds=(REACH, EMPTY, SCHEMA, SCHEMA_NEWER, *FAULTS.values(), JOURNAL_MODE),
        run=_reach,
        provides="the store",
        limit=timedelta(seconds=30),
    ),
    Check(
        name="store.state",
        finds=(STATE, *sqlite.FOUND, FORBIDDEN, CONTAINER),
        run=_state,
        provides="a sound store",
        needs=("store.reach",),
        limit=timedelta(seconds=60),
    ),
)
