"""Crashes, and what the queue makes of them: of a worker, of an engine.

Every function is one transaction and safe to replay.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from sqlalchemy import Connection, select, update

from vbatch.store import suspects
from vbatch.store.database import Store
from vbatch.store.database.columns import NOW
from vbatch.store.records import LeaseKey
from vbatch.store.tables import CHUNK, LIVE, RUNNING, WORKER, same_chunk


def reclaim(
    store: Store, *, worker: str, heartbeat: int | None, vanished: bool = False, together: bool = False
) -> int:
    """Give a dead worker's chunks back and return how many those were.

    ``heartbeat`` is what it was when the worker was found dead: if it has risen since, the worker lives, and nothing
    happens. None where its process is proved to be gone. ``vanished`` says that it died on this very boot, ``together``
    that others did in the same seconds. See ``vbatch.store.suspects`` for what follows.
    """

    def work(connection: Connection) -> int:
        alive = select(WORKER.c.boot_id, WORKER.c.stopping_at).where(WORKER.c.id == worker, LIVE)
        if heartbeat is not None:
            alive = alive.where(WORKER.c.heartbeat == heartbeat)
        dead = connection.execute(alive.with_for_update()).one_or_none()
        if dead is None:
            return 0
        from_outside = not vanished or together or dead.stopping_at is not None
        rows = connection.execute(
            select(CHUNK).where(RUNNING, CHUNK.c.worker == worker).with_for_update()
        ).all()
        for row in rows:
            suspects.worker_crashed(
                connection, row, boot=None if from_outside else dead.boot_id, alone=len(rows) == 1
            )
        ended = NOW if vanished else WORKER.c.heartbeat_at
        connection.execute(update(WORKER).where(WORKER.c.id == worker).values(stopped_at=ended))
        return len(rows)

    return store.write(work)


def at_stake(store: Store, *, workers: Collection[str]) -> frozenset[str]:
    """Return those of these dead workers whose death would have a request blamed for it."""
    if not workers:
        return frozenset()
    held = select(CHUNK).where(RUNNING, CHUNK.c.worker.in_(workers))
    rows = store.read(lambda connection: connection.execute(held).all())
    return frozenset(row.worker for row in rows if suspects.would_blame(row))


def record_engine_crash(
    store: Store,
    *,
    worker: str,
    suspects_of: Mapping[LeaseKey, Sequence[int]],
    cause: str,
    killed: bool = False,
) -> None:
    """Count an engine crash on the chunks whose requests were in the engine, and give them back.

    ``suspects_of`` names those requests by their ``seq``. An engine that SIGKILL ended (``killed``) counts like a
    worker that is gone: most often something else needed the memory. See ``vbatch.store.suspects`` for what follows.
    """

    alone = sum(map(len, suspects_of.values())) == 1

    def work(connection: Connection) -> None:
        for key in sorted(suspects_of):
            row = connection.execute(
                select(CHUNK)
                .where(same_chunk(key), RUNNING, CHUNK.c.worker == worker, CHUNK.c.epoch == key.epoch)
                .with_for_update()
            ).one_or_none()
            if row is not None and killed:
                boot = connection.execute(select(WORKER.c.boot_id).where(WORKER.c.id == worker)).scalar()
                suspects.worker_crashed(connection, row, boot=boot, alone=alone)
            elif row is not None:
                suspects.engine_crashed(connection, row, suspects_of[key], cause, alone=alone)

    store.write(work)
