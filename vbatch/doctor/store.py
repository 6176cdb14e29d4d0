"""Checks of the store: whether it answers, why not, whether it is whole, durable, and ours to write."""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Iterator
from datetime import timedelta

from vbatch.doctor import sqlite
from vbatch.doctor.catalogue import Meaning
from vbatch.doctor.checks import Check, Group
from vbatch.doctor.facts import Facts, NothingStored
from vbatch.doctor.findings import Finding, Level, info, ok
from vbatch.doctor.starting import so_far, span
from vbatch.errors import ExitCode, StoreMisconfigured, StoreUnreachable
from vbatch.service import database
from vbatch.service.database import Database, Kind
from vbatch.store import Store, overview
from vbatch.store.database import migrate
from vbatch.store.database.backends import backend_of
from vbatch.store.database.backends.postgresql import Server
from vbatch.store.database.url import shown

MEANINGS = sqlite.MEANINGS | {
    "store.reach": Meaning(means="The store answers, and vbatch may use it.", remedy="Nothing to do."),
    "store.away": Meaning(
        means="Nobody serves where the URL points: refused, closed at once, or an unknown host.",
        remedy="Start the database; after a boot it may only need time: vbatch doctor --wait 60s.",
    ),
    "store.hanging": Meaning(
        means="Somebody accepts the connection and says nothing, or a check of the store got no answer in time.",
        remedy="Look at the server's log; a firewall or a full disk does this.",
    ),
    "store.starting": Meaning(means="The server is starting up.", remedy="Wait: vbatch doctor --wait 60s."),
    "store.recovering": Meaning(
        means="The server replays its log after a crash. That may take minutes after a power cut.",
        remedy="Wait: vbatch doctor --wait 10m.",
    ),
    "store.stopping": Meaning(
        means="The server is shutting down.", remedy="Start it again, or wait for who does."
    ),
    "store.full": Meaning(
        means="The server has no free connection.",
        remedy="Raise max_connections, or end what holds them; vbatch needs 3 a process.",
    ),
    "store.disk": Meaning(means="The store's disk is full, or fails.", remedy="Make room; look at dmesg."),
    "store.locked": Meaning(
        means="Another program holds the SQLite file's lock for longer than a transaction takes.",
        remedy="fuser -v FILE shows who; a database browser or a backup does this.",
    ),
    "store.password": Meaning(
        means="The server does not accept the password, or wants one.",
        remedy="Set VBATCH_DATABASE_URL, or the password file of libpq (~/.pgpass).",
    ),
    "store.forbidden": Meaning(
        means="The server knows us and refuses: pg_hba.conf, or a right that is missing.",
        remedy="GRANT CONNECT, CREATE ON DATABASE … TO …; or a line in pg_hba.conf.",
    ),
    "store.no_database": Meaning(means="The server has no database of that name.", remedy="createdb NAME"),
    "store.no_user": Meaning(means="The server has no user of that name.", remedy="createuser NAME"),
    "store.url": Meaning(
        means="The URL of the store cannot be understood.",
        remedy="VBATCH_DATABASE_URL=sqlite:////path/to/vbatch.db or postgresql://user:password@host/database",
    ),
    "store.read_only": Meaning(
        means="The store can be read but not written.",
        remedy="A standby or default_transaction_read_only on a server; permissions or a read-only mount of a file.",
    ),
    "store.not_sqlite": Meaning(means="The file is not a SQLite database.", remedy="Name another file."),
    "store.cannot_open": Meaning(means="The file or its folder may not be opened.", remedy="ls -ld of both."),
    "store.schema": Meaning(
        means="The tables are those of this version; or of an older one, which the next command migrates.",
        remedy="Nothing to do.",
    ),
    "store.schema_newer": Meaning(
        means="A newer vbatch has used this store.", remedy="pip install --upgrade vbatch"
    ),
    "store.state": Meaning(
        means="The look at how sound the store is. Where it is not, nothing is said of the queue in it, and nothing "
        "there is repaired.",
        remedy="Mend what the store's own findings name.",
    ),
    "store.empty": Meaning(means="There is no store yet.", remedy="Nothing: the first batch makes it."),
    "store.durability": Meaning(
        means="Whether a saved result survives a power cut. vbatch sets synchronous_commit itself; fsync and "
        "full_page_writes are the server's, and it must not switch them off.",
        remedy="ALTER SYSTEM SET fsync = on; ALTER SYSTEM SET full_page_writes = on; then restart the server.",
    ),
    "store.container": Meaning(
        means="The database runs in a container that does not come back after a reboot.",
        remedy="docker update --restart unless-stopped NAME",
    ),
}

_WHY = {
    "away": "batches cannot be taken in or answered before it serves",
    "starting": "it will serve in a moment",
    "recovering": "it replays its log after a crash, and will serve when it is done",
    "stopping": "somebody stops it",
    "full": "vbatch cannot connect before another program lets go",
    "hanging": "something between here and the server swallows what is said",
    "disk": "nothing can be saved before there is room",
    "locked": "nothing can be saved meanwhile",
}


def _reach(facts: Facts) -> Iterator[Finding]:
    """Connect for real, as a command does; a probe that only looks for a listener says OK to a wrong password."""
    try:
        found = list(_unopened(facts))
        yield from found
        if any(finding.level is Level.FAIL for finding in found):
            return
        store = facts.store
        revision = overview.revision(store)
    except NothingStored:
        yield info("store.empty", "there is no store yet", "the first batch makes it")
        return
    except StoreUnreachable as error:
        yield _unreachable(facts, error)
        return
    except StoreMisconfigured as error:
        yield Finding(
            id=f"store.{error.fault}",
            level=Level.FAIL,
            what=error.message.rstrip("."),
            why="waiting will not help: a person must mend this",
            commands=_remedy(facts, error),
            exit_code=ExitCode.MISCONFIGURED,
        )
        return
    if revision is None:
        yield info("store.empty", f"{store} answers and is empty", "the first batch makes the tables")
    elif revision not in migrate.REVISIONS:
        yield Finding(
            id="store.schema_newer",
            level=Level.FAIL,
            what=f"{store} was used by a newer vbatch (schema {revision}; this one knows {migrate.CURRENT})",
            why="an older one would not understand what it reads",
            commands=("pip install --upgrade vbatch",),
            exit_code=ExitCode.MISCONFIGURED,
        )
    elif revision != migrate.CURRENT:
        yield info("store.schema", f"{store} has the tables of an older vbatch; the next start migrates them")
    else:
        yield ok("store.reach", f"{_called(store)} answers")


def _unopened(facts: Facts) -> Iterator[Finding]:
    file = backend_of(facts.settings.store_url).file
    if file is not None:
        yield from sqlite.unopened(file)


def _remedy(facts: Facts, error: StoreMisconfigured) -> tuple[str, ...]:
    if error.fault == "damaged" and facts.store.file is not None:
        return (sqlite.rescue(facts.store.file),)
    match error.fault:
        case "url":
            return ("export VBATCH_DATABASE_URL=postgresql://user:password@host/database",)
        case "password" | "forbidden" | "no_database" | "no_user":
            return (_psql(facts.store),)
    return (error.hint,) if error.hint else ()


def _psql(store: Store, *command: str) -> str:
    """Return how a person connects as vbatch does, who is then asked for the password."""
    url = shown(store.url.set(drivername="postgresql")).replace(":***@", "@")
    return shlex.join(["psql", url, *(part for line in command for part in ("-c", line))])


def _called(store: Store) -> str:
    if store.file is not None:
        return f"SQLite {sqlite3.sqlite_version} ({store.file})"
    seen = overview.server(store)
    return f"PostgreSQL {seen.version} at {database.recognise(str(store)).where}, up for {span(seen.uptime)},"


def _unreachable(facts: Facts, error: StoreUnreachable) -> Finding:
    where = database.recognise(str(facts.store))
    return Finding(
        id=f"store.{error.fault}",
        level=Level.FAIL,
        what=error.message.rstrip("."),
        why=_WHY.get(error.fault, "") + so_far(facts, error.fault, where),
        commands=tuple(_start(where)) if error.fault == "away" else ("vbatch doctor store --wait 60s",),
        passing=True,
        exit_code=ExitCode.STORE_UNREACHABLE,
    )


def _start(where: Database) -> Iterator[str]:
    """Say how a database of this kind is started."""
    match where.kind:
        case Kind.REMOTE:
            yield f"ping {where.where.rpartition(':')[0]}   # then look at the server"
        case Kind.CONTAINER if where.container is not None:
            yield f"{where.container.engine} logs {where.container.name}"
        case Kind.SERVICE if where.unit is not None:
            yield f"systemctl status {where.unit}"
        case Kind.EMBEDDED:
            yield "vbatch doctor store --wait 60s"
        case _:
            yield "sudo systemctl start postgresql   # or: docker ps --all, docker start NAME"


def _server(facts: Facts) -> Iterator[Finding]:
    """Look at how durable and how writable a PostgreSQL is."""
    store = facts.store
    if store.file is not None:
        yield from sqlite.look(store.file)
        return
    seen = overview.server(store)
    if seen.in_recovery or seen.read_only:
        yield Finding(
            id="store.read_only",
            level=Level.FAIL,
            what=f"{store} can only be read",
            why="it is a standby" if seen.in_recovery else "default_transaction_read_only is on",
            commands=(_psql(store, "SHOW default_transaction_read_only"),),
            exit_code=ExitCode.MISCONFIGURED,
        )
    yield from _rights(store, seen)
    if seen.unsafe:
        yield Finding(
            id="store.durability",
            level=Level.FAIL,
            what=f"the server runs with {' and '.join(f'{name}=off' for name in seen.unsafe)}",
            why="a power cut can cost saved results, or the whole database",
            commands=tuple(_psql(store, f"ALTER SYSTEM SET {name} = on") for name in seen.unsafe),
        )
    else:
        yield ok(
            "store.durability",
            "a saved result survives a power cut (fsync, full_page_writes, synchronous_commit)",
        )
    where = database.recognise(str(store))
    if where.hint is not None:
        yield Finding(
            id="store.container",
            level=Level.WARN,
            what=f"{where.words}; it does not come back after a reboot",
            commands=(where.hint,),
        )


def _rights(store: Store, seen: Server) -> Iterator[Finding]:
    """Look whether we may do what the next command will do; connecting shows nothing of it."""
    makes_tables = overview.revision(store) != migrate.CURRENT
    if makes_tables and not seen.may_create:
        what, right = f"we may not make tables in {store}", "CREATE ON SCHEMA public"
    elif seen.withheld:
        what = f"we may not read and write {', '.join(seen.withheld)} in {store}"
        right = f"SELECT, INSERT, UPDATE, DELETE ON {', '.join(seen.withheld)}"
    else:
        return
    role = store.url.username or "NAME"
    yield Finding(
        id="store.forbidden",
        level=Level.FAIL,
        what=what,
        why="another user owns them, or the database",
        commands=(shlex.join(["psql", "-c", f'GRANT {right} TO "{role}"', store.url.database or ""]),),
        exit_code=ExitCode.MISCONFIGURED,
    )


CHECKS = (
    Check(name="store.reach", group=Group.STORE, run=_reach, limit=timedelta(seconds=30)),
    Check(
        name="store.state",
        group=Group.STORE,
        run=_server,
        needs=("store.reach",),
        limit=timedelta(seconds=60),
    ),
)
