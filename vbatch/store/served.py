"""Batches of programs: there at once, validated behind, refused with every bad line; the server finds its own here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, exists, select, update

from vbatch.protocol import BatchStatus
from vbatch.store import events, staging
from vbatch.store.catalog import find_in, remove_requests, to_batches
from vbatch.store.database import Store
from vbatch.store.database.columns import NOW
from vbatch.store.records import Batch, NewBatch
from vbatch.store.tables import BATCH, NOT_FINAL, REQUEST, SERVED
from vbatch.system.processes import ProcessIdentity

_VALIDATING = and_(BATCH.c.status == BatchStatus.VALIDATING, BATCH.c.asked.is_not(None))


def enter(store: Store, new: NewBatch, submitter: ProcessIdentity) -> Batch:
    """Enter a batch that everyone sees and that is still to be validated."""
    pk = staging.announce(store, new, submitter)
    return store.read(lambda connection: find_in(connection, pk))


def begin(store: Store, *, pk: int, submitter: ProcessIdentity) -> bool:
    """Begin to validate, from the start where an earlier try was cut off. False where that is not needed any more."""

    def work(connection: Connection) -> bool:
        changed = connection.execute(
            update(BATCH).where(BATCH.c.pk == pk, _VALIDATING).values(submitter=asdict(submitter))
        )
        return bool(changed.rowcount)

    if not store.write(work):
        return False
    remove_requests(store, pk)
    return True


def refuse(store: Store, *, pk: int, errors: Sequence[Mapping[str, Any]]) -> Batch:
    """Record that its file is not valid: ``errors`` are the bad lines. One that was cancelled meanwhile stays so."""

    def work(connection: Connection) -> Batch:
        refused = connection.execute(
            update(BATCH)
            .where(BATCH.c.pk == pk, _VALIDATING)
            .values(status=BatchStatus.FAILED, failed_at=NOW, errors=[dict(each) for each in errors])
        )
        if refused.rowcount:
            events.record_end(connection, pk=pk, status=BatchStatus.FAILED)
        return find_in(connection, pk)

    batch = store.write(work)
    remove_requests(store, pk)
    return batch


def to_validate(store: Store, *, host: str) -> list[Batch]:
    """Return the batches that wait for their validation on this host, the oldest first."""
    query = select(BATCH).where(NOT_FINAL, _VALIDATING, BATCH.c.host == host).order_by(BATCH.c.pk)
    return store.read(lambda connection: to_batches(connection, query))


def sweep(store: Store, *, host: str) -> None:
    """Remove what a validation that was cut off left of batches that have ended since."""
    left = exists().where(REQUEST.c.batch == BATCH.c.pk)
    ended = BATCH.c.status.in_((BatchStatus.FAILED, BatchStatus.CANCELLED))
    query = select(BATCH.c.pk).where(SERVED, ended, BATCH.c.total == 0, BATCH.c.host == host, left)
    for pk in store.read(lambda connection: connection.execute(query).scalars().all()):
        remove_requests(store, pk)


def of_file(store: Store, *, file_id: str, since: datetime | None = None) -> list[Batch]:
    """Return the batches that were made of an uploaded file, the newest first; only those created ``since`` then."""
    query = select(BATCH).where(BATCH.c.input_file == file_id).order_by(BATCH.c.pk.desc())
    if since is not None:
        query = query.where(BATCH.c.created_at >= since)
    return store.read(lambda connection: to_batches(connection, query))


def asked_since(store: Store, *, since: datetime) -> list[Batch]:
    """Return the batches of programs that were created since then, the newest first."""
    query = select(BATCH).where(SERVED, BATCH.c.created_at >= since).order_by(BATCH.c.pk.desc())
    return store.read(lambda connection: to_batches(connection, query))


def needs(store: Store, *, file_id: str) -> str | None:
    """Return the id of an unfinished batch that needs this file."""
    query = select(BATCH.c.id).where(NOT_FINAL, BATCH.c.input_file == file_id).limit(1)
    return store.read(lambda connection: connection.execute(query).scalar())
