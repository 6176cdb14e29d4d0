"""Bring the schema up to date at start: nothing to do costs one query, and Alembic is not even imported."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from sqlalchemy import JSON, Connection, Engine, inspect, select, text

from vbatch.errors import StoreMisconfigured, StoreUnreachable
from vbatch.store.database.backends.protocol import Backend, Fault, NotThere
from vbatch.store.database.columns import NOW, UtcDateTime
from vbatch.system import processes
from vbatch.system.processes import Liveness, ProcessIdentity
from vbatch.system.units import UNIT

log = logging.getLogger(__name__)

# Oldest first; a test holds this in step with the scripts in migrations/versions.
REVISIONS = ("0001", "0002", "0003", "0004", "0005", "0006")
CURRENT = REVISIONS[-1]

FRESH = timedelta(seconds=90)  # since the last heartbeat of a worker that cannot be seen from here: a lease


def ensure_current(engine: Engine, backend: Backend, *, create: bool = True) -> None:
    """Migrate if needed. Several processes may call this at once; one migrates, the others wait.

    Without ``create`` an empty database raises NotThere: a backup may be about to be restored.
    Raises StoreMisconfigured when the schema is newer than this version of vbatch, or there is no room for a copy, and
    StoreUnreachable while a worker or a submit of the older version uses it.
    """
    with engine.connect() as connection:
        if _is_current(connection):
            return
        if not create and revision(connection) is None:
            raise NotThere(
                "it holds no tables of vbatch any more: restore a backup; or start with an empty store: vbatch list",
                Fault.REPLACED,
                "vbatch list",
            )
    with backend.migration(engine) as connection:
        if _is_current(connection):
            return
        require_unused(connection)
        backend.back_up()
        _upgrade(connection)


def revision(connection: Connection) -> str | None:
    """Return the schema's revision, None for an empty database."""
    if not inspect(connection).has_table("alembic_version"):
        return None
    return connection.execute(text("SELECT version_num FROM alembic_version")).scalar()


def _is_current(connection: Connection) -> bool:
    found = revision(connection)
    if found is not None and found not in REVISIONS:
        raise StoreMisconfigured(
            f"the store has schema {found}, which is newer than this vbatch supports ({CURRENT})",
            hint="pip install --upgrade vbatch",
            fault="schema_newer",
        )
    return found == CURRENT


def require_unused(connection: Connection) -> None:
    """Raise StoreUnreachable while a process of the older version uses the store: its statements would fail."""
    found = revision(connection)
    if found is None:
        return
    for submitter in _submitters(connection):
        if processes.liveness(submitter) is Liveness.ALIVE:
            raise StoreUnreachable(
                "the store has the tables of an older vbatch, and a submit of that version still uses them: "
                f"process {submitter.pid}",
                hint="try again when it has ended",
                fault=Fault.LOCKED,
            )
    me = processes.current()  # in an old backup that was put back under this process
    at_work = [worker for worker in _workers(connection, found) if worker != me]
    if not at_work:
        return
    named = ", ".join(f"process {one.pid} on {one.host.partition('/')[0]}" for one in at_work)
    raise StoreUnreachable(
        f"the store has the tables of an older vbatch, and a worker of that version still uses them: {named}",
        hint=_how_to_restart(at_work[0]),
        fault=Fault.LOCKED,
    )


def _submitters(connection: Connection) -> list[ProcessIdentity]:
    """Return the processes that announced a batch and have not stored it whole."""
    query = text("SELECT submitter FROM batch WHERE status = 'validating'").columns(submitter=JSON)
    return [ProcessIdentity(**found) for found in connection.execute(query).scalars() if found is not None]


def _workers(connection: Connection, found: str) -> Iterator[ProcessIdentity]:
    """Yield the workers that live, or that may live on another host or in another pid namespace."""
    heartbeat_at = "beat_at" if found < "0003" else "heartbeat_at"
    query = text(
        f"SELECT host, boot_id, pid_namespace, pid, start_ticks, {heartbeat_at} AS heartbeat_at FROM worker"
        " WHERE stopped_at IS NULL ORDER BY started_at"
    )
    now = connection.execute(select(NOW)).scalar_one()
    for row in connection.execute(query.columns(heartbeat_at=UtcDateTime())).all():
        *who, heartbeat = row
        identity = ProcessIdentity(**dict(zip(row._fields, who, strict=False)))
        match processes.liveness(identity):
            case Liveness.ALIVE:
                yield identity
            case Liveness.UNKNOWN if abs(now - heartbeat) < FRESH:
                yield identity


def _how_to_restart(worker: ProcessIdentity) -> str:
    """Return how a person restarts a worker: by its unit, or where it was started by hand."""
    if processes.liveness(worker) is not Liveness.ALIVE:
        return f"stop that worker on {worker.host.partition('/')[0]}, update vbatch there, and start it again"
    group = processes.cgroup(worker.pid) or ""
    if (unit := re.search(rf"{UNIT}@[^/]+\.service", group)) is None:
        return "press Ctrl-C in the terminal of that worker, then: vbatch run-worker"
    return f"{'systemctl --user' if '/user@' in group else 'sudo systemctl'} restart {unit[0]}"


def _upgrade(connection: Connection) -> None:
    from alembic import command
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
    log.info("store.migrated revision=%s", CURRENT)
