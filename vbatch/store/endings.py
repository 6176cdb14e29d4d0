"""How batches end: cancelled, expired, or finalized by one worker at a time."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, and_, case, exists, func, or_, select, text, update

from vbatch.errors import WrongStatus
from vbatch.protocol import BatchStatus
from vbatch.store import tables
from vbatch.store.catalog import find_in, still_there, to_batches
from vbatch.store.database import Store
from vbatch.store.records import Batch, ChunkState
from vbatch.store.tables import OPEN, BatchRow, ChunkRow, RequestRow, ResultRow, WorkerRow

_batch = BatchRow.__table__  # type: ignore[attr-defined]
_chunk = ChunkRow.__table__  # type: ignore[attr-defined]
_request = RequestRow.__table__  # type: ignore[attr-defined]
_result = ResultRow.__table__  # type: ignore[attr-defined]
_worker = WorkerRow.__table__  # type: ignore[attr-defined]

_VISIBLE = _batch.c.status != BatchStatus.VALIDATING
_OPEN_CHUNK = exists().where(_chunk.c.batch == _batch.c.pk, text(f"chunk.{OPEN}"))
_UNFINISHED = and_(text(f"batch.{tables.UNFINISHED}"), _VISIBLE)


def request_cancel(store: Store, *, pk: int) -> Batch:
    """Let no request of the batch start any more, and have its workers stop what runs.

    Asking twice is no error. Raises WrongStatus when the batch has ended.
    """

    def work(connection: Connection) -> Batch:
        connection.execute(select(_batch.c.pk).where(_batch.c.pk == pk).with_for_update())
        batch = find_in(connection, pk)
        if batch.status.final:
            raise WrongStatus(f"{batch.id} is already {batch.status}")
        if batch.status is BatchStatus.IN_PROGRESS:
            connection.execute(
                update(_batch)
                .where(_batch.c.pk == pk)
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
            select(_batch.c.pk, _batch.c.id)
            .where(
                _UNFINISHED,
                _batch.c.status == BatchStatus.IN_PROGRESS,
                _batch.c.expires_at <= now,
                _OPEN_CHUNK,
            )
            .order_by(_batch.c.pk)
            .with_for_update()
        ).all()
        for row in due:
            connection.execute(update(_batch).where(_batch.c.pk == row.pk).values(expired_at=now))
            _stop_chunks(connection, row.pk, "batch_expired", "The batch expired before this request ran.")
        return [row.id for row in due]

    return store.write(work)


def _stop_chunks(connection: Connection, pk: int, code: str, message: str) -> None:
    open_chunks = and_(_chunk.c.batch == pk, text(f"chunk.{OPEN}"))
    # Wait for whoever is at work on one of them, so that the update sees the pieces that it may be split into.
    connection.execute(select(_chunk.c.n).where(open_chunks).order_by(_chunk.c.n).with_for_update()).all()
    connection.execute(
        update(_chunk)
        .where(open_chunks)
        .values(state=ChunkState.CANCELLED, worker=None, error_code=code, error_message=message)
    )


def to_finalize(store: Store, *, by: str) -> list[Batch]:
    """Return the unfinished batches of which no request is open any more, and which nobody else is finalizing.

    One that ``by`` itself began and could not end (a full disk) is among them again.
    """
    alive = exists().where(_worker.c.id == _batch.c.finalizer, _worker.c.stopped_at.is_(None))
    query = (
        select(_batch)
        .where(
            _UNFINISHED,
            ~_OPEN_CHUNK,
            or_(_batch.c.finalizer.is_(None), _batch.c.finalizer == by, ~alive),
        )
        .order_by(_batch.c.pk)
    )
    return store.read(lambda connection: to_batches(connection, query))


def start_finalizing(store: Store, *, pk: int, by: str) -> Batch | None:
    """Take a batch for finalizing. None when somebody else who is alive has it, or it is finished."""
    alive = exists().where(_worker.c.id == _batch.c.finalizer, _worker.c.stopped_at.is_(None))

    def work(connection: Connection) -> Batch | None:
        taken = connection.execute(
            update(_batch)
            .where(
                _batch.c.pk == pk,
                _UNFINISHED,
                ~_OPEN_CHUNK,
                or_(_batch.c.finalizer.is_(None), _batch.c.finalizer == by, ~alive),
            )
            .values(
                finalizer=by,
                finalizing_at=func.coalesce(_batch.c.finalizing_at, datetime.now(UTC)),
                status=case(
                    (_batch.c.status == BatchStatus.IN_PROGRESS, BatchStatus.FINALIZING.value),
                    else_=_batch.c.status,
                ),
            )
        )
        return find_in(connection, pk) if taken.rowcount else None

    return store.write(work)


def hand_back(store: Store, *, pk: int, by: str) -> None:
    """Let others finalize the batch too: here its files cannot be written."""
    store.write(
        lambda connection: connection.execute(
            update(_batch).where(_batch.c.pk == pk, _batch.c.finalizer == by).values(finalizer=None)
        )
    )


def finish(store: Store, *, pk: int, by: str, output_path: str, error_path: str) -> Batch:
    """Say that the batch's files are durable: it is completed, cancelled or expired from now on.

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
        connection.execute(
            update(_batch)
            .where(_batch.c.pk == pk, _batch.c.finalizer == by, _UNFINISHED)
            .values(output_path=output_path, error_path=error_path, finalizer=None, **ending)
        )
        return find_in(connection, pk)

    return store.write(work)
