"""Workers, commands that write files, and the ledger of the engine processes that workers started."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import Connection, Select, delete, insert, select, update

from vbatch.errors import StoreReplaced
from vbatch.store.database import Store
from vbatch.store.database.columns import NOW
from vbatch.store.records import ChunkState, EngineProcess, Worker
from vbatch.store.tables import BATCH, CHUNK, IS_COMMAND, LIVE, PROCESS, RUNNING, WORKER
from vbatch.system.processes import ProcessIdentity


def register(store: Store, *, identity: ProcessIdentity, engine: str, gpus: Sequence[str] = ()) -> str:
    """Register a worker and return its id. One that is registered already keeps its id (replay).

    ``gpus`` are the UUIDs of its GPUs.
    """
    worker = f"worker_{secrets.token_hex(8)}"

    def work(connection: Connection) -> str:
        known = connection.execute(
            select(WORKER.c.id).where(
                WORKER.c.boot_id == identity.boot_id,
                WORKER.c.pid_namespace == identity.pid_namespace,
                WORKER.c.pid == identity.pid,
                WORKER.c.start_ticks == identity.start_ticks,
                WORKER.c.engine == engine,
                LIVE,
            )
        ).scalar()
        if known is None:
            connection.execute(
                insert(WORKER).values(
                    id=worker,
                    **_columns(identity),
                    engine=engine,
                    gpus=list(gpus),
                    models=[],
                    heartbeat=0,
                    started_at=NOW,
                    heartbeat_at=NOW,
                )
            )
        return known or worker

    return store.write(work)


def heartbeat(
    store: Store,
    *,
    worker: str,
    models: Sequence[str],
    note: str | None,
    requests_per_second: float | None = None,
    known: int = 0,
) -> int:
    """Raise the worker's heartbeat and return it: it lives and makes progress.

    ``models`` are those that its engine serves. The time, by the database's clock, and the pace are for people: no
    lease is decided by them.
    Raises StoreReplaced where the worker is not in the store, or with less than the ``known`` heartbeat.
    """

    def work(connection: Connection) -> int:
        beaten = require_known(connection, worker, known).heartbeat + 1
        connection.execute(
            update(WORKER)
            .where(WORKER.c.id == worker)
            .values(
                heartbeat=beaten,
                heartbeat_at=NOW,
                models=list(models),
                note=note,
                requests_per_second=requests_per_second,
            )
        )
        return int(beaten)

    return store.write(work)


def require_known(connection: Connection, worker: str, heartbeat: int) -> Any:
    """Lock the worker's row and return it.

    Raises StoreReplaced where there is none, or one of a time before this heartbeat: then this is another store, or a
    backup was restored, and what the worker had leased is not its own here.
    """
    row = connection.execute(
        select(WORKER.c.heartbeat, WORKER.c.stopped_at, WORKER.c.boot_id)
        .where(WORKER.c.id == worker)
        .with_for_update()
    ).one_or_none()
    if row is None:
        raise StoreReplaced(
            "the store does not know this worker: it was replaced or restored while vbatch used it"
        )
    if row.heartbeat < heartbeat:
        raise StoreReplaced("the store is older than it was: a backup was restored while vbatch used it")
    return row


def stopping(store: Store, *, worker: str) -> None:
    """Record that the worker received a signal to stop: however it ends now, no request is to blame."""
    store.write(
        lambda connection: connection.execute(
            update(WORKER)
            .where(WORKER.c.id == worker, WORKER.c.stopping_at.is_(None))
            .values(stopping_at=NOW)
        )
    )


def stop(store: Store, *, worker: str) -> None:
    """Record that the worker ended cleanly, and that its engine processes did.

    What it still holds goes back to the queue: it could not be released earlier, and no worker looks for the chunks
    of one that stopped.
    """

    def work(connection: Connection) -> None:
        connection.execute(delete(PROCESS).where(PROCESS.c.worker == worker))
        connection.execute(
            update(CHUNK)
            .where(RUNNING, CHUNK.c.worker == worker)
            .values(state=ChunkState.READY, worker=None, worker_crashes=0)
        )
        connection.execute(update(WORKER).where(WORKER.c.id == worker, LIVE).values(stopped_at=NOW))

    store.write(work)


def live(store: Store) -> list[Worker]:
    """Return the workers that did not stop cleanly: they work, or they died."""
    return _selected(store, select(WORKER).where(LIVE, ~IS_COMMAND).order_by(WORKER.c.started_at))


def commands(store: Store) -> list[Worker]:
    """Return the commands that write files, as far as they did not end cleanly."""
    return _selected(store, select(WORKER).where(LIVE, IS_COMMAND))


def finalizer(store: Store, *, pk: int) -> Worker | None:
    """Return the worker or command that writes the files of this batch; it may have died."""
    query = select(WORKER).join(BATCH, BATCH.c.finalizer == WORKER.c.id).where(BATCH.c.pk == pk, LIVE)
    return next(iter(_selected(store, query)), None)


def working_on(store: Store, *, pk: int) -> list[Worker]:
    """Return the workers that did not stop cleanly and hold a chunk of this batch."""
    holders = select(CHUNK.c.worker).where(CHUNK.c.batch == pk, RUNNING)
    query = select(WORKER).where(LIVE, WORKER.c.id.in_(holders))
    return _selected(store, query)


def of_boot(store: Store, *, boot_id: str) -> list[Worker]:
    """Return every worker that registered on this boot of its machine, stopped ones too."""
    return _selected(store, select(WORKER).where(WORKER.c.boot_id == boot_id, ~IS_COMMAND))


def asked_to_stop(store: Store, *, boot_id: str, around: datetime, within: timedelta) -> bool:
    """Whether a worker of this boot received a signal at about that time."""
    query = select(WORKER.c.id).where(
        WORKER.c.boot_id == boot_id, WORKER.c.stopping_at.between(around - within, around + within)
    )
    return store.read(lambda connection: connection.execute(query.limit(1)).first()) is not None


def recent(store: Store, *, limit: int) -> list[Worker]:
    """Return workers, stopped ones too, the newest first."""
    return _selected(
        store, select(WORKER).where(~IS_COMMAND).order_by(WORKER.c.started_at.desc()).limit(limit)
    )


def record_processes(store: Store, *, worker: str, processes: Sequence[EngineProcess]) -> None:
    """Write engine processes into the ledger."""

    def work(connection: Connection) -> None:
        connection.execute(delete(PROCESS).where(PROCESS.c.worker == worker))
        if processes:
            connection.execute(
                insert(PROCESS),
                [
                    {
                        "worker": worker,
                        "title": process.title,
                        **_columns(process.identity),
                    }
                    for process in processes
                ],
            )

    store.write(work)


def forget_processes(store: Store, *, worker: str) -> None:
    """Take a worker's engine processes out of the ledger: they are gone."""
    store.write(lambda connection: connection.execute(delete(PROCESS).where(PROCESS.c.worker == worker)))


def forget(store: Store, *, processes: Sequence[ProcessIdentity]) -> None:
    """Take processes out of the ledger: they are gone."""

    def work(connection: Connection) -> None:
        for identity in processes:
            connection.execute(
                delete(PROCESS).where(
                    PROCESS.c.boot_id == identity.boot_id,
                    PROCESS.c.pid_namespace == identity.pid_namespace,
                    PROCESS.c.pid == identity.pid,
                    PROCESS.c.start_ticks == identity.start_ticks,
                )
            )

    if processes:
        store.write(work)


def ledger(store: Store) -> list[EngineProcess]:
    """Return every engine process in the ledger."""
    rows = store.read(lambda connection: connection.execute(select(PROCESS)).all())
    return [EngineProcess(worker=row.worker, identity=_identity(row), title=row.title) for row in rows]


def _selected(store: Store, query: Select[Any]) -> list[Worker]:
    timed = query.add_columns(NOW.label("read_at"))
    return [_to_worker(row) for row in store.read(lambda connection: connection.execute(timed).all())]


def _columns(identity: ProcessIdentity) -> dict[str, Any]:
    return {
        "host": identity.host,
        "boot_id": identity.boot_id,
        "pid_namespace": identity.pid_namespace,
        "pid": identity.pid,
        "start_ticks": identity.start_ticks,
    }


def _identity(row: Any) -> ProcessIdentity:
    return ProcessIdentity(
        host=row.host,
        boot_id=row.boot_id,
        pid_namespace=row.pid_namespace,
        pid=row.pid,
        start_ticks=row.start_ticks,
    )


def _to_worker(row: Any) -> Worker:
    return Worker(
        id=row.id,
        identity=_identity(row),
        engine=row.engine,
        gpus=tuple(row.gpus or ()),
        models=tuple(row.models or ()),
        note=row.note,
        requests_per_second=row.requests_per_second,
        heartbeat=row.heartbeat,
        started_at=row.started_at,
        heartbeat_at=row.heartbeat_at,
        stopped_at=row.stopped_at,
        silent=max(row.read_at - row.heartbeat_at, timedelta()),
    )
