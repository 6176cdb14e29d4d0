"""Workers, and the ledger of the engine processes that they started."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, delete, insert, select, update

from vbatch.store.database import Store
from vbatch.store.records import ChunkState, EngineProcess, Worker
from vbatch.store.tables import CHUNK, LIVE, PROCESS, RUNNING, WORKER
from vbatch.system.processes import ProcessIdentity


def register(store: Store, *, identity: ProcessIdentity, engine: str, gpu_uuid: str | None) -> str:
    """Write a new worker down and return its id. One that is already written down keeps its id (replay)."""
    worker = f"worker_{secrets.token_hex(8)}"
    now = datetime.now(UTC)

    def work(connection: Connection) -> str:
        known = connection.execute(
            select(WORKER.c.id).where(
                WORKER.c.boot_id == identity.boot_id,
                WORKER.c.pid_namespace == identity.pid_namespace,
                WORKER.c.pid == identity.pid,
                WORKER.c.start_ticks == identity.start_ticks,
                LIVE,
            )
        ).scalar()
        if known is None:
            connection.execute(
                insert(WORKER).values(
                    id=worker,
                    **_columns(identity),
                    engine=engine,
                    gpu_uuid=gpu_uuid,
                    beat=0,
                    started_at=now,
                    beat_at=now,
                )
            )
        return known or worker

    return store.write(work)


def beat(
    store: Store,
    *,
    worker: str,
    model: str | None,
    note: str | None,
    requests_per_second: float | None = None,
) -> None:
    """Raise the worker's beat: it lives and makes progress.

    The time and the pace are for people, nothing is decided by them.
    """
    store.write(
        lambda connection: connection.execute(
            update(WORKER)
            .where(WORKER.c.id == worker)
            .values(
                beat=WORKER.c.beat + 1,
                beat_at=datetime.now(UTC),
                model=model,
                note=note,
                requests_per_second=requests_per_second,
            )
        )
    )


def stopping(store: Store, *, worker: str) -> None:
    """Write down that the worker was asked to stop by a signal: however it ends now, no request is to blame."""
    store.write(
        lambda connection: connection.execute(
            update(WORKER)
            .where(WORKER.c.id == worker, WORKER.c.stopping_at.is_(None))
            .values(stopping_at=datetime.now(UTC))
        )
    )


def stop(store: Store, *, worker: str) -> None:
    """Write down that the worker ended cleanly, and that its engine processes did.

    What it still holds goes back to the queue: it could not be released earlier, and nobody looks after the chunks
    of a worker that stopped.
    """

    def work(connection: Connection) -> None:
        connection.execute(delete(PROCESS).where(PROCESS.c.worker == worker))
        connection.execute(
            update(CHUNK)
            .where(RUNNING, CHUNK.c.worker == worker)
            .values(state=ChunkState.READY, worker=None, losses=0)
        )
        connection.execute(
            update(WORKER).where(WORKER.c.id == worker, LIVE).values(stopped_at=datetime.now(UTC))
        )

    store.write(work)


def live(store: Store) -> list[Worker]:
    """Return the workers that did not stop cleanly: they work, or they died."""
    rows = store.read(
        lambda connection: connection.execute(select(WORKER).where(LIVE).order_by(WORKER.c.started_at)).all()
    )
    return [_to_worker(row) for row in rows]


def working_on(store: Store, *, pk: int) -> list[Worker]:
    """Return the workers that did not stop cleanly and hold a chunk of this batch."""
    holders = select(CHUNK.c.worker).where(CHUNK.c.batch == pk, RUNNING)
    query = select(WORKER).where(LIVE, WORKER.c.id.in_(holders))
    return [_to_worker(row) for row in store.read(lambda connection: connection.execute(query).all())]


def of_boot(store: Store, *, boot_id: str) -> list[Worker]:
    """Return every worker that registered on this boot of its machine, stopped ones too."""
    rows = store.read(
        lambda connection: connection.execute(select(WORKER).where(WORKER.c.boot_id == boot_id)).all()
    )
    return [_to_worker(row) for row in rows]


def asked_to_stop(store: Store, *, boot_id: str, around: datetime, within: timedelta) -> bool:
    """Whether a worker of this boot received a signal at about that time."""
    query = select(WORKER.c.id).where(
        WORKER.c.boot_id == boot_id, WORKER.c.stopping_at.between(around - within, around + within)
    )
    return store.read(lambda connection: connection.execute(query.limit(1)).first()) is not None


def recent(store: Store, *, limit: int) -> list[Worker]:
    """Return workers, stopped ones too, the newest first."""
    rows = store.read(
        lambda connection: connection.execute(
            select(WORKER).order_by(WORKER.c.started_at.desc()).limit(limit)
        ).all()
    )
    return [_to_worker(row) for row in rows]


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
                        "cgroup": process.cgroup,
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
    """Return every engine process that is written down."""
    rows = store.read(lambda connection: connection.execute(select(PROCESS)).all())
    return [
        EngineProcess(worker=row.worker, identity=_identity(row), title=row.title, cgroup=row.cgroup)
        for row in rows
    ]


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
        gpu_uuid=row.gpu_uuid,
        model=row.model,
        note=row.note,
        requests_per_second=row.requests_per_second,
        beat=row.beat,
        started_at=row.started_at,
        beat_at=row.beat_at,
        stopped_at=row.stopped_at,
    )
