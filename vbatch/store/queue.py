"""The lease: claim chunks, flush their results, release and reclaim them. Fenced by the epoch.

Every function is one transaction and safe to replay. A chunk is ours while its row says so: state running, our
name, our epoch. Anything else that a late or frozen worker brings is dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict
from itertools import takewhile
from typing import Any

from sqlalchemy import Connection, insert, or_, select, update

from vbatch.store import suspects
from vbatch.store.database import Store
from vbatch.store.records import ChunkKey, ChunkState, Flushed, Lease, Request, Result, Waiting
from vbatch.store.tables import (
    BATCH,
    CHUNK,
    READY,
    REQUEST,
    REQUEST_WITH_RESULT,
    RESULT,
    RUNNING,
    UNRECORDED,
    WORKER,
    same_chunk,
)

_BEST_FIRST = (CHUNK.c.priority.desc(), CHUNK.c.batch, CHUNK.c.n)


def waiting(store: Store) -> list[Waiting]:
    """Return the best ready work of each model, the best model first: highest priority, then oldest batch.

    Jumps from model to model in the index of ready chunks, so that it costs the same however many there are.
    """

    def work(connection: Connection) -> list[Waiting]:
        found: list[Waiting] = []
        best_of_next_model = (
            select(CHUNK.c.model, CHUNK.c.priority, CHUNK.c.batch)
            .where(READY)
            .order_by(CHUNK.c.model, CHUNK.c.priority.desc(), CHUNK.c.batch, CHUNK.c.n)
            .limit(1)
        )
        while True:
            beyond = (
                best_of_next_model.where(CHUNK.c.model > found[-1].model) if found else best_of_next_model
            )
            row = connection.execute(beyond).one_or_none()
            if row is None:
                return found
            found.append(Waiting(model=row.model, priority=row.priority, batch=row.batch))

    return sorted(store.read(work), key=lambda entry: (-entry.priority, entry.batch))


def claim(store: Store, *, worker: str, model: str, chunks: int, held: Collection[ChunkKey]) -> list[Lease]:
    """Lease up to ``chunks`` ready chunks of a model, by priority, then in the order of submission.

    Chunks that are already ours but not ``held`` come first: the answer to an earlier COMMIT was lost. A chunk that
    runs alone (``vbatch.store.suspects``) is leased by who holds nothing else; of what stands behind it at most one
    request is leased before it, to compare with.
    """

    def work(connection: Connection) -> list[Lease]:
        boot = _count_as_alive(connection, worker)
        mine = connection.execute(
            select(CHUNK)
            .where(RUNNING, CHUNK.c.worker == worker, CHUNK.c.model == model)
            .order_by(*_BEST_FIRST)
        ).all()
        strays = [row for row in mine if ChunkKey(row.batch, row.n) not in held]
        best = connection.execute(
            select(CHUNK)
            .where(READY, CHUNK.c.model == model)
            .order_by(*_BEST_FIRST)
            .limit(max(0, chunks - len(strays)))
            .with_for_update(skip_locked=True)
        ).all()
        fresh = list(takewhile(lambda row: not row.alone, best))
        if any(row.alone for row in mine):
            fresh = []
        elif not (mine or fresh):
            fresh = [suspects.first(connection, row, boot) for row in best[:1]]
        for row in fresh:
            connection.execute(
                update(CHUNK)
                .where(same_chunk(ChunkKey(row.batch, row.n)))
                .values(state=ChunkState.RUNNING, worker=worker, epoch=CHUNK.c.epoch + 1)
            )
        ids = _batch_ids(connection, {row.batch for row in (*strays, *fresh)})
        return [
            *(_lease(connection, row, row.epoch, ids) for row in strays),
            *(_lease(connection, row, row.epoch + 1, ids) for row in fresh),
        ]

    return store.write(work)


def flush(store: Store, *, worker: str, results: Sequence[Result]) -> Flushed:
    """Record results, in one durable transaction. Those of a chunk that is not ours any more are dropped.

    What was recorded before (a replay) is not recorded or counted again.
    """
    by_chunk: dict[ChunkKey, list[Result]] = defaultdict(list)
    for result in results:
        by_chunk[result.key].append(result)

    def work(connection: Connection) -> Flushed:
        recorded = 0
        rejected: set[ChunkKey] = set()
        finished: set[ChunkKey] = set()
        for key in sorted(by_chunk):
            row = connection.execute(select(CHUNK).where(same_chunk(key)).with_for_update()).one_or_none()
            ours = _under_this_lease(row, worker, by_chunk[key])
            if row is None or not ours or row.state not in (ChunkState.RUNNING, ChunkState.DONE):
                rejected.add(key)
                continue
            if row.state == ChunkState.DONE:  # a replay: the first COMMIT was durable
                finished.add(key)
                continue
            new = _unrecorded(connection, row, ours)
            recorded += len(new)
            if _record(connection, row, new):
                finished.add(key)
                suspects.ended(connection, row, worker)
        return Flushed(recorded=recorded, rejected=frozenset(rejected), finished_chunks=frozenset(finished))

    return store.write(work)


def still_ours(store: Store, *, worker: str, leases: Collection[tuple[ChunkKey, int]]) -> frozenset[ChunkKey]:
    """Return which of these chunks are still ours under that epoch."""
    if not leases:
        return frozenset()

    def work(connection: Connection) -> frozenset[ChunkKey]:
        rows = connection.execute(
            select(CHUNK.c.batch, CHUNK.c.n, CHUNK.c.epoch).where(RUNNING, CHUNK.c.worker == worker)
        ).all()
        ours = {(ChunkKey(row.batch, row.n), row.epoch) for row in rows}
        return frozenset(key for key, epoch in leases if (key, epoch) in ours)

    return store.read(work)


def held_by(store: Store, *, worker: str) -> frozenset[ChunkKey]:
    """Return the chunks that the store has for leased to this worker."""
    query = select(CHUNK.c.batch, CHUNK.c.n).where(RUNNING, CHUNK.c.worker == worker)
    return frozenset(store.read(lambda connection: [ChunkKey(*row) for row in connection.execute(query)]))


def release(store: Store, *, worker: str, keys: Collection[ChunkKey]) -> int:
    """Give chunks back unfinished. An interruption is not an attempt and no crash: no deaths in a row any more."""
    return store.write(
        lambda connection: sum(
            connection.execute(
                update(CHUNK)
                .where(same_chunk(key), RUNNING, CHUNK.c.worker == worker)
                .values(state=ChunkState.READY, worker=None, losses=0)
            ).rowcount
            for key in sorted(keys)
        )
    )


def _under_this_lease(row: Any, worker: str, results: Sequence[Result]) -> list[Result]:
    """Return those of the results that belong to the present lease of their chunk."""
    if row is None or row.worker != worker:
        return []
    return [result for result in results if result.epoch == row.epoch]


def _count_as_alive(connection: Connection, worker: str) -> str | None:
    """Lock the worker's row against a reclaim, and take back that it stopped; return its boot.

    A worker that was frozen past its lease has been written off. Thawed it goes on, and when it dies what it
    holds then must be found by who looks for the chunks of workers that did not stop.
    """
    row = connection.execute(
        select(WORKER.c.stopped_at, WORKER.c.boot_id).where(WORKER.c.id == worker).with_for_update()
    ).one_or_none()
    if row is None:
        return None
    if row.stopped_at is not None:
        connection.execute(update(WORKER).where(WORKER.c.id == worker).values(stopped_at=None))
    return str(row.boot_id)


def _unrecorded(connection: Connection, row: Any, results: Sequence[Result]) -> list[Result]:
    known = set(
        connection.execute(
            select(RESULT.c.seq).where(
                RESULT.c.batch == row.batch, RESULT.c.seq.between(row.first_seq, row.last_seq)
            )
        ).scalars()
        if row.completed + row.failed
        else ()
    )
    return [result for result in results if result.seq not in known]


def _record(connection: Connection, row: Any, results: Sequence[Result]) -> bool:
    """Insert results and raise the chunk's counts; say whether the chunk is finished."""
    if not results:
        return bool(row.completed + row.failed == row.total)
    connection.execute(
        insert(RESULT),
        [
            {
                "batch": result.key.batch,
                "seq": result.seq,
                "epoch": result.epoch,
                **asdict(result.outcome),
            }
            for result in results
        ],
    )
    succeeded = sum(result.outcome.succeeded for result in results)
    finished = row.completed + row.failed + len(results) == row.total
    connection.execute(
        update(CHUNK)
        .where(same_chunk(ChunkKey(row.batch, row.n)))
        .values(
            completed=CHUNK.c.completed + succeeded,
            failed=CHUNK.c.failed + len(results) - succeeded,
            prompt_tokens=CHUNK.c.prompt_tokens + sum(result.outcome.prompt_tokens for result in results),
            completion_tokens=CHUNK.c.completion_tokens
            + sum(result.outcome.completion_tokens for result in results),
            losses=0,
            state=ChunkState.DONE if finished else ChunkState.RUNNING,
        )
    )
    return bool(finished)


def _batch_ids(connection: Connection, pks: Collection[int]) -> dict[int, str]:
    if not pks:
        return {}
    rows = connection.execute(select(BATCH.c.pk, BATCH.c.id).where(or_(*(BATCH.c.pk == pk for pk in pks))))
    return {row.pk: row.id for row in rows}


def _lease(connection: Connection, row: Any, epoch: int, ids: Mapping[int, str]) -> Lease:
    return Lease(
        key=ChunkKey(row.batch, row.n),
        batch_id=ids[row.batch],
        epoch=epoch,
        model=row.model,
        url=row.url,
        alone=row.alone,
        requests=tuple(_open_requests(connection, row)),
    )


def _open_requests(connection: Connection, row: Any) -> list[Request]:
    """Return the requests of a chunk that have no result."""
    query = select(REQUEST.c.seq, REQUEST.c.line, REQUEST.c.custom_id, REQUEST.c.body).where(
        REQUEST.c.batch == row.batch, REQUEST.c.seq.between(row.first_seq, row.last_seq)
    )
    if row.epoch or row.completed:
        query = query.select_from(REQUEST_WITH_RESULT).where(UNRECORDED)
    return [
        Request(seq=found.seq, line=found.line, custom_id=found.custom_id, body=bytes(found.body))
        for found in connection.execute(query.order_by(REQUEST.c.seq))
    ]
