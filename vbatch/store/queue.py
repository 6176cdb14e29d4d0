"""The lease: claim chunks, flush their results, release and reclaim them. Fenced by the epoch.

Every function is one transaction and safe to replay. A worker holds a chunk while the row says so: state running,
the worker's name, the epoch of its lease. Anything else that a late or frozen worker brings is dropped.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import takewhile
from typing import Any

from sqlalchemy import Connection, and_, insert, or_, select, update

from vbatch.answers import CUT_OFF, EMPTY
from vbatch.store import bodies, registry, suspects
from vbatch.store.database import Store
from vbatch.store.ready import BEST_FIRST, Closed, best, open_to
from vbatch.store.records import ChunkState, Flushed, Lease, LeaseKey, Result, Waiting
from vbatch.store.tables import (
    BATCH,
    CHUNK,
    READY,
    RESULT,
    RUNNING,
    WORKER,
    same_chunk,
)


def waiting(store: Store, *, closed: Closed = {}) -> list[Waiting]:  # noqa: B006  (never changed)
    """Return the best ready work of each model, the best model first: highest priority, then oldest batch.

    ``closed`` are the urls of each model for which nothing is to be claimed. Jumps from model to model in the index of
    ready chunks, so that it costs the same however many there are.
    """

    def work(connection: Connection) -> list[Waiting]:
        found: list[Waiting] = []
        best_of_next_model = (
            select(CHUNK.c.model, CHUNK.c.priority, CHUNK.c.batch)
            .where(READY, *open_to(closed))
            .order_by(CHUNK.c.model, CHUNK.c.priority.desc(), CHUNK.c.batch, CHUNK.c.number)
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


def claim(
    store: Store,
    *,
    worker: str,
    models: Collection[str],
    chunks: int,
    held: Collection[LeaseKey],
    closed: Closed = {},  # noqa: B006  (never changed)
    room: int = bodies.READ_BYTES,
    heartbeat: int = 0,
    on_heartbeat: Callable[[int], None] = lambda _heartbeat: None,
) -> list[Lease]:
    """Lease up to ``chunks`` ready chunks of an engine's models, by priority, then in the order of submission.

    ``models`` are the names at which the engine answers. None for the ``closed`` urls of a model is among the chunks.
    Of the batch whose turn it is, chunks whose requests begin like those of a chunk that this worker has go first: the
    engine has that beginning in its cache. None is waited for, and none is kept for it.
    Bodies are read as far as there is ``room``, in bytes.
    Leases that this worker has in the store but are not ``held`` come first: the answer to an earlier COMMIT was lost.
    A chunk that runs alone (``vbatch.store.suspects``) is leased by a worker that holds nothing else; of what stands
    behind it at most one request is leased before it, to compare with. A claim counts as a
    heartbeat, which is given to ``on_heartbeat``: a backup from before it is known by that. Raises StoreReplaced where
    the store does not know this worker, or not its last known ``heartbeat``.
    """

    def work(connection: Connection) -> tuple[list[Lease], int]:
        boot, beaten = _count_as_alive(connection, worker, heartbeat)
        mine = connection.execute(
            select(CHUNK).where(RUNNING, CHUNK.c.worker == worker).order_by(*BEST_FIRST)
        ).all()
        strays = [row for row in mine if row.model in models and _key(row) not in held]
        groups = {(row.batch, row.alike) for row in mine if row.alike is not None and row.model in models}
        ready = best(connection, models, closed, groups, most=max(0, chunks - len(strays)))
        fresh = list(takewhile(lambda row: not row.alone, ready))
        if any(row.alone for row in mine):
            fresh = []
        elif not (mine or fresh):
            fresh = [suspects.first(connection, row, boot) for row in ready[:1]]
        if fresh:
            beaten += 1
            connection.execute(update(WORKER).where(WORKER.c.id == worker).values(heartbeat=beaten))
        for row in fresh:
            connection.execute(
                update(CHUNK)
                .where(same_chunk(row))
                .values(state=ChunkState.RUNNING, worker=worker, epoch=CHUNK.c.epoch + 1)
            )
        ids = _batch_ids(connection, {row.batch for row in (*strays, *fresh)})
        leases: list[Lease] = []
        left = room
        for row, epoch in (*((row, row.epoch) for row in strays), *((row, row.epoch + 1) for row in fresh)):
            leases.append(_lease(connection, row, epoch, ids, room=left))
            left = 0 if leases[-1].unread else left - sum(len(read.body) for read in leases[-1].requests)
        return leases, beaten

    leases, beaten = store.write(work)
    on_heartbeat(beaten)
    return leases


def flush(store: Store, *, worker: str, results: Sequence[Result]) -> Flushed:
    """Record results, in one durable transaction. Those of a lease that this worker has no more are dropped.

    What was recorded before (a replay) is not recorded or counted again.
    """
    by_lease: dict[LeaseKey, list[Result]] = defaultdict(list)
    for result in results:
        by_lease[result.key].append(result)

    def work(connection: Connection) -> Flushed:
        recorded = 0
        rejected: set[LeaseKey] = set()
        finished: set[LeaseKey] = set()
        for key in sorted(by_lease):
            leased = and_(same_chunk(key), CHUNK.c.worker == worker, CHUNK.c.epoch == key.epoch)
            row = connection.execute(select(CHUNK).where(leased).with_for_update()).one_or_none()
            if row is None or row.state not in (ChunkState.RUNNING, ChunkState.DONE):
                rejected.add(key)
                continue
            if row.state == ChunkState.DONE:  # a replay: the first COMMIT was durable
                finished.add(key)
                continue
            new = _unrecorded(connection, row, by_lease[key])
            recorded += len(new)
            if _record(connection, row, new):
                finished.add(key)
                suspects.ended(connection, row, worker)
        bodies.drop_buffers(connection, sum(len(result.outcome.body or b"") for result in results))
        return Flushed(recorded=recorded, rejected=frozenset(rejected), finished=frozenset(finished))

    return store.write(work)


def held_by(store: Store, *, worker: str) -> frozenset[LeaseKey]:
    """Return the leases that the store has for this worker."""
    query = select(CHUNK.c.batch, CHUNK.c.number, CHUNK.c.epoch).where(RUNNING, CHUNK.c.worker == worker)
    return frozenset(store.read(lambda connection: [LeaseKey(*row) for row in connection.execute(query)]))


def release(store: Store, *, worker: str, keys: Collection[LeaseKey]) -> int:
    """Give chunks back unfinished, and return how many those were.

    An interruption is not an attempt and no crash: the count of crashes in a row starts again.
    """
    return store.write(
        lambda connection: sum(
            connection.execute(
                update(CHUNK)
                .where(same_chunk(key), RUNNING, CHUNK.c.worker == worker, CHUNK.c.epoch == key.epoch)
                .values(state=ChunkState.READY, worker=None, worker_crashes=0)
            ).rowcount
            for key in sorted(keys)
        )
    )


def _count_as_alive(connection: Connection, worker: str, heartbeat: int) -> tuple[str, int]:
    """Lock the worker's row against a reclaim, and take back that it stopped; return its boot and its heartbeat.

    A worker that was frozen past its lease is recorded as dead. Thawed it continues, and when it dies, what it holds
    then must be found among the chunks of workers that did not stop.
    """
    row = registry.require_known(connection, worker, heartbeat)
    if row.stopped_at is not None:
        connection.execute(update(WORKER).where(WORKER.c.id == worker).values(stopped_at=None))
    return str(row.boot_id), int(row.heartbeat)


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
                "batch": row.batch,
                "seq": result.seq,
                "epoch": result.key.epoch,
                **result.outcome._asdict(),
            }
            for result in results
        ],
    )
    succeeded = sum(result.outcome.succeeded for result in results)
    finished = row.completed + row.failed + len(results) == row.total
    connection.execute(
        update(CHUNK)
        .where(same_chunk(row))
        .values(
            completed=CHUNK.c.completed + succeeded,
            failed=CHUNK.c.failed + len(results) - succeeded,
            prompt_tokens=CHUNK.c.prompt_tokens + sum(result.outcome.prompt_tokens for result in results),
            completion_tokens=CHUNK.c.completion_tokens
            + sum(result.outcome.completion_tokens for result in results),
            cached_tokens=CHUNK.c.cached_tokens + sum(result.outcome.cached_tokens for result in results),
            cut_off=CHUNK.c.cut_off + sum(result.outcome.finish == CUT_OFF for result in results),
            empty=CHUNK.c.empty + sum(result.outcome.finish == EMPTY for result in results),
            worker_crashes=0,
            state=ChunkState.DONE if finished else ChunkState.RUNNING,
        )
    )
    return bool(finished)


def _key(row: Any) -> LeaseKey:
    return LeaseKey(row.batch, row.number, row.epoch)


def _batch_ids(connection: Connection, pks: Collection[int]) -> dict[int, str]:
    if not pks:
        return {}
    rows = connection.execute(select(BATCH.c.pk, BATCH.c.id).where(or_(*(BATCH.c.pk == pk for pk in pks))))
    return {row.pk: row.id for row in rows}


def _lease(connection: Connection, row: Any, epoch: int, ids: Mapping[int, str], *, room: int) -> Lease:
    requests, unread = bodies.open_requests(connection, row, room=room)
    return Lease(
        key=LeaseKey(row.batch, row.number, epoch),
        batch_id=ids[row.batch],
        model=row.model,
        url=row.url,
        alone=row.alone,
        requests=requests,
        unread=unread,
    )
