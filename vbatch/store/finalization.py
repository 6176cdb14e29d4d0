"""How batches end: cancelled, expired, or finalized by one worker at a time."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, case, exists, func, or_, select, update

from vbatch.errors import WrongStatus
from vbatch.protocol import BatchStatus
from vbatch.store import events
from vbatch.store.catalog import find_in, still_there, to_batches
from vbatch.store.database import Store
from vbatch.store.database.columns import NOW
from vbatch.store.records import Batch, ChunkState
from vbatch.store.tables import BATCH, CHUNK, HAS_OPEN_CHUNK, LIVE, OPEN, SERVED, UNFINISHED, WORKER
from vbatch.system import processes


def request_cancel(store: Store, *, pk: int) -> Batch:
    """Start no further request of the batch, and have its workers stop what runs.

    Asking twice is no error. Raises WrongStatus when the batch has ended.
    """

    def work(connection: Connection) -> Batch:
        connection.execute(select(BATCH.c.pk).where(BATCH.c.pk == pk).with_for_update())
        batch = find_in(connection, pk)
        if batch.status.final:
            raise WrongStatus(f"{batch.id} is already {batch.status}")
        if batch.status is BatchStatus.VALIDATING:  # none of its requests is there yet, as far as others see
            connection.execute(
                update(BATCH)
                .where(BATCH.c.pk == pk)
                .values(status=BatchStatus.CANCELLED, cancelling_at=NOW, cancelled_at=NOW)
            )
            events.record_end(connection, pk=pk, status=BatchStatus.CANCELLED)
        if batch.status is BatchStatus.IN_PROGRESS:
            connection.execute(
                update(BATCH).where(BATCH.c.pk == pk).values(status=BatchStatus.CANCELLING, cancelling_at=NOW)
            )
            _stop_chunks(
                connection, pk, "batch_cancelled", "The batch was cancelled before this request ran."
            )
        return find_in(connection, pk)

    return store.write(work)


def expire(store: Store, *, now: datetime | None = None) -> list[str]:
    """Stop the batches whose deadline has passed; return their ids. Their files are then to be written.

    The time is the database's, unless another one is given: hosts may disagree about it. One of which nothing is open
    any more is in time: only its files were not written yet.
    """

    moment = NOW if now is None else now

    def work(connection: Connection) -> list[str]:
        due = connection.execute(
            select(BATCH.c.pk, BATCH.c.id)
            .where(
                UNFINISHED,
                BATCH.c.status == BatchStatus.IN_PROGRESS,
                BATCH.c.expires_at <= moment,
                HAS_OPEN_CHUNK,
            )
            .order_by(BATCH.c.pk)
            .with_for_update()
        ).all()
        for row in due:
            connection.execute(update(BATCH).where(BATCH.c.pk == row.pk).values(expired_at=moment))
            _stop_chunks(connection, row.pk, "batch_expired", "The batch expired before this request ran.")
        return [row.id for row in due]

    return store.write(work)


def _stop_chunks(connection: Connection, pk: int, code: str, message: str) -> None:
    open_chunks = and_(CHUNK.c.batch == pk, OPEN)
    # Wait for whoever is at work on one of them, so that the update sees the pieces that it may be split into.
    connection.execute(
        select(CHUNK.c.number).where(open_chunks).order_by(CHUNK.c.number).with_for_update()
    ).all()
    connection.execute(
        update(CHUNK)
        .where(open_chunks)
        .values(state=ChunkState.CANCELLED, worker=None, error_code=code, error_message=message)
    )


def _free_for(by: str) -> Any:
    """Return the condition for batches that wait for their files, and that no other live worker is finalizing."""
    alive = exists().where(WORKER.c.id == BATCH.c.finalizer, LIVE)
    free = or_(BATCH.c.finalizer.is_(None), BATCH.c.finalizer == by, ~alive)
    return and_(UNFINISHED, ~HAS_OPEN_CHUNK, free)


def written_on(store: Store, host: str) -> Any:
    """Return the condition for batches whose files a worker or a command on this host writes.

    It is the host that submitted them. A SQLite file and the files of its batches are on one machine, whatever its name
    is now; and of an old batch the host is not known. Those of programs are the server's to write.
    """
    return (
        ~SERVED
        if store.file is not None
        else and_(~SERVED, or_(BATCH.c.host.is_(None), BATCH.c.host == host))
    )


def to_finalize(store: Store, *, by: str, served: bool = False) -> list[Batch]:
    """Return the unfinished batches whose files this host writes, now that no request of them is open any more.

    None that another live worker is finalizing. One that ``by`` itself began and could not end (a full disk) is among
    them again. Those of programs are for the server of their host alone (``served``).
    """
    host = processes.current().host
    mine = and_(SERVED, BATCH.c.host == host) if served else written_on(store, host)
    query = select(BATCH).where(_free_for(by), mine).order_by(BATCH.c.pk)
    return store.read(lambda connection: to_batches(connection, query))


def leave_to_others(store: Store) -> list[Batch]:
    """Record that batches only lack the files which another host writes; return those of which that is new."""
    elsewhere = and_(~SERVED, ~written_on(store, processes.current().host))
    unrecorded = and_(UNFINISHED, BATCH.c.status == BatchStatus.IN_PROGRESS, ~HAS_OPEN_CHUNK)
    query = select(BATCH).where(unrecorded, elsewhere).order_by(BATCH.c.pk)
    found = store.read(lambda connection: to_batches(connection, query))
    return [batch for batch in found if _leave(store, batch.pk)]


def _leave(store: Store, pk: int) -> bool:
    waits = and_(BATCH.c.pk == pk, BATCH.c.status == BatchStatus.IN_PROGRESS, ~HAS_OPEN_CHUNK)
    changed = update(BATCH).where(waits).values(status=BatchStatus.FINALIZING, finalizing_at=NOW)
    return store.write(lambda connection: bool(connection.execute(changed).rowcount))


def start_finalizing(store: Store, *, pk: int, by: str) -> Batch | None:
    """Take a batch for finalizing. None when another live worker has it, or it is finished."""

    def work(connection: Connection) -> Batch | None:
        taken = connection.execute(
            update(BATCH)
            .where(BATCH.c.pk == pk, _free_for(by))
            .values(
                finalizer=by,
                finalizing_at=func.coalesce(BATCH.c.finalizing_at, NOW),
                status=case(
                    (BATCH.c.status == BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING.value),
                    else_=BATCH.c.status,
                ),
            )
        )
        return find_in(connection, pk) if taken.rowcount else None

    return store.write(work)


def hand_back(store: Store, *, pk: int, by: str) -> None:
    """Let others finalize the batch too: here its files cannot be written."""
    store.write(
        lambda connection: connection.execute(
            update(BATCH).where(BATCH.c.pk == pk, BATCH.c.finalizer == by).values(finalizer=None)
        )
    )


def finish(store: Store, *, pk: int, by: str, output_path: str, error_path: str) -> Batch:
    """Record that the files of the batch are durable: it is completed, cancelled or expired from now on.

    Raises NoSuchBatch where it was deleted meanwhile.
    """

    def work(connection: Connection) -> Batch:
        still_there(connection, pk)
        batch = find_in(connection, pk)
        ending: dict[str, Any]
        if batch.expired_at is not None:  # what was cancelled after that had stopped already
            ending = {"status": BatchStatus.EXPIRED}
        elif batch.status is BatchStatus.CANCELLING:
            ending = {"status": BatchStatus.CANCELLED, "cancelled_at": NOW}
        else:
            ending = {"status": BatchStatus.COMPLETED, "completed_at": NOW}
        ended = connection.execute(
            update(BATCH)
            .where(BATCH.c.pk == pk, BATCH.c.finalizer == by, UNFINISHED)
            .values(output_path=output_path, error_path=error_path, finalizer=None, **ending)
        )
        if ended.rowcount:
            events.record_end(connection, pk=pk, status=ending["status"])
        return find_in(connection, pk)

    return store.write(work)
