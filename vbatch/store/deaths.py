"""Deaths, and what the queue makes of them: a worker's, an engine's, a model's that cannot be loaded.

Every function is one transaction and safe to replay.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime

from sqlalchemy import Connection, and_, select, update

from vbatch.store import suspects
from vbatch.store.database import Store
from vbatch.store.records import ChunkKey, ChunkState
from vbatch.store.tables import CHUNK, READY, RUNNING, WORKER

_chunk = CHUNK
_worker = WORKER

_READY = READY
_RUNNING = RUNNING


def reclaim(store: Store, *, worker: str, beat: int | None, vanished: bool = False) -> int:
    """Give a dead worker's chunks back and return how many those were.

    ``beat`` is what its beat was when it was found dead: if it has risen since, it lives, and nothing happens.
    None where its process is proved to be gone. ``vanished`` says that it died on this very boot: a chunk that
    takes one worker after the other down with it, without any result in between, becomes a suspect.
    """

    def work(connection: Connection) -> int:
        alive = select(_worker.c.id).where(_worker.c.id == worker, _worker.c.stopped_at.is_(None))
        if beat is not None:
            alive = alive.where(_worker.c.beat == beat)
        if connection.execute(alive.with_for_update()).one_or_none() is None:
            return 0
        rows = connection.execute(
            select(_chunk).where(_RUNNING, _chunk.c.worker == worker).with_for_update()
        ).all()
        for row in rows:
            suspects.lost(connection, row, vanished=vanished, alone=len(rows) == 1)
        ended = datetime.now(UTC) if vanished else _worker.c.beat_at
        connection.execute(update(_worker).where(_worker.c.id == worker).values(stopped_at=ended))
        return len(rows)

    return store.write(work)


def record_crash(
    store: Store, *, worker: str, suspects_of: Mapping[ChunkKey, Sequence[int]], cause: str
) -> None:
    """Count an engine death on the chunks whose requests were in the engine, and give them back.

    ``suspects_of`` names those requests by their ``seq``. See ``vbatch.store.suspects`` for what follows.
    """

    alone = sum(map(len, suspects_of.values())) == 1

    def work(connection: Connection) -> None:
        for key in sorted(suspects_of):
            row = connection.execute(
                select(_chunk)
                .where(_chunk.c.batch == key.batch, _chunk.c.n == key.n, _RUNNING, _chunk.c.worker == worker)
                .with_for_update()
            ).one_or_none()
            if row is not None:
                suspects.crashed(connection, row, suspects_of[key], cause, alone=alone)

    store.write(work)


def fail_model(store: Store, *, worker: str, model: str, code: str, message: str) -> int | None:
    """Fail every ready chunk of a model that this worker cannot load; return how many requests that were.

    None, and nothing is done, where another worker has it loaded and works with it: on a bigger GPU, say.
    """

    def work(connection: Connection) -> int | None:
        elsewhere = select(_chunk.c.n).where(_RUNNING, _chunk.c.model == model, _chunk.c.worker != worker)
        if connection.execute(elsewhere.limit(1)).first() is not None:
            return None
        ready = and_(_READY, _chunk.c.model == model)
        rows = connection.execute(
            select(_chunk.c.total, _chunk.c.completed, _chunk.c.failed).where(ready).with_for_update()
        ).all()
        connection.execute(
            update(_chunk)
            .where(ready)
            .values(
                state=ChunkState.FAILED,
                failed=_chunk.c.total - _chunk.c.completed,
                error_code=code,
                error_message=message,
            )
        )
        return int(sum(row.total - row.completed - row.failed for row in rows))

    return store.write(work)
