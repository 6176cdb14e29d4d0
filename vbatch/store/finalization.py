"""How batches end: cancelled, expired, or finalized by one worker at a time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, and_, case, exists, func, or_, select, update

from vbatch.errors import WrongStatus
from vbatch.protocol import BatchStatus
from vbatch.store import events
from vbatch.store.catalog import find_in, still_there, to_batches
from vbatch.store.database import Store
from vbatch.store.records import Batch, ChunkState
from vbatch.store.tables import BATCH, CHUNK, HAS_OPEN_CHUNK, LIVE, OPEN, SERVED, UNFINISHED, WORKER


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
            now = datetime.now(UTC)
            connection.execute(
                update(BATCH)
                .where(BATCH.c.pk == pk)
                .values(status=BatchStatus.CANCELLED, cancelling_at=now, cancelled_at=now)
            )
            events.record_end(connection, pk=pk, status=BatchStatus.CANCELLED)
        if batch.status is BatchStatus.IN_PROGRESS:
            connection.execute(
                update(BATCH)
                .where(BATCH.c.pk == pk)
                .values(status=BatchStatus.CANCELLING, cancelling_at=datetime.now(UTC))
            )
            _stop_chunks(
                connection, pk, "batch_cancelled", "The batch was cancelled before this request ran."
            )
        return find_in(connection, pk)

    return store.write(work)


def expire(store: Store, *, now: datetime) -> list[str]:
    """Stop the batches whose deadline has passed; return their ids. Their files are then to be written.

    One of which nothing is open any more is in time: only its files were not written yet.
    """

    def work(connection: Connection) -> list[str]:
        due = connection.execute(
            select(BATCH.c.pk, BATCH.c.id)
            .where(
                UNFINISHED,
                BATCH.c.status == BatchStatus.IN_PROGRESS,
                BATCH.c.expires_at <= now,
                HAS_OPEN_CHUNK,
            )
            .order_by(BATCH.c.pk)
            .with_for_update()
        ).all()
        for row in due:
            connection.execute(update(BATCH).where(BATCH.c.pk == row.pk).values(expired_at=now))
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


def to_finalize(store: Store, *, by: str, served_on: str | None = None) -> list[Batch]:
    """Return the unfinished batches of which no request is open any more, and which no other live worker is finalizing.

    One that ``by`` itself began and could not end (a full disk) is among them again. Those of programs are left to the
    server: it gets them, and no others, with the name of its host as ``served_on``.
    """
    mine = ~SERVED if served_on is None else and_(SERVED, BATCH.c.host == served_on)
    query = select(BATCH).where(_free_for(by), mine).order_by(BATCH.c.pk)
    return store.read(lambda connection: to_batches(connection, query))


def start_finalizing(store: Store, *, pk: int, by: str) -> Batch | None:
    """Take a batch for finalizing. None when another live worker has it, or it is finished."""

    def work(connection: Connection) -> Batch | None:
        taken = connection.execute(
            update(BATCH)
            .where(BATCH.c.pk == pk, _free_for(by))
            .values(
                finalizer=by,
                finalizing_at=func.coalesce(BATCH.c.finalizing_at, datetime.now(UTC)),
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
            ending = {"status": BatchStatus.CANCELLED, "cancelled_at": datetime.now(UTC)}
        else:
            ending = {"status": BatchStatus.COMPLETED, "completed_at": datetime.now(UTC)}
        ended = connection.execute(
            update(BATCH)
            .where(BATCH.c.pk == pk, BATCH.c.finalizer == by, UNFINISHED)
            .values(output_path=output_path, error_path=error_path, finalizer=None, **ending)
        )
        if ended.rowcount:
            events.record_end(connection, pk=pk, status=ending["status"])
        return find_in(connection, pk)

    return store.write(work)
