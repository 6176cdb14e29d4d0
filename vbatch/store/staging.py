"""Batches that are not visible yet: announced while their requests come in, taken back, or left by a dead process."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict

from sqlalchemy import Connection, insert, null, select, update

from vbatch.protocol import BatchStatus
from vbatch.store.catalog import hide, remove_requests, remove_rows
from vbatch.store.database import Store
from vbatch.store.records import NewBatch
from vbatch.store.tables import BATCH, VISIBLE
from vbatch.system.processes import ProcessIdentity


def announce(store: Store, new: NewBatch, submitter: ProcessIdentity) -> int:
    """Enter the batch and return its key.

    An earlier try of the same batch may not have been able to take back what it had written; that goes now.
    """

    def work(connection: Connection) -> tuple[int, bool]:
        known = connection.execute(select(BATCH.c.pk).where(BATCH.c.id == new.id)).scalar()
        if known is not None:
            return int(known), True
        inserted = connection.execute(
            insert(BATCH).values(
                id=new.id,
                status=BatchStatus.VALIDATING,
                endpoint=new.endpoint,
                name=new.name,
                priority=new.priority,
                metadata=dict(new.metadata),
                input_path=new.input_path,
                input_sha256="",
                output_path=new.output_path,
                error_path=new.error_path,
                total=0,
                submitter=asdict(submitter),
                host=submitter.host,
                created_at=new.created_at,
                expires_at=new.expires_at,
                notify=new.notify,
                input_file=new.input_file,
                asked=null() if new.asked is None else dict(new.asked),
            )
        )
        assert inserted.inserted_primary_key is not None
        return int(inserted.inserted_primary_key[0]), False

    pk, known = store.write(work)
    if known:
        withdraw(store, pk, submitter)
        remove_requests(store, pk)
    return pk


def withdraw(store: Store, pk: int, submitter: ProcessIdentity) -> None:
    """Take back an acceptance whose COMMIT may have been durable. No sweep interferes: it stays the submitter's."""
    store.write(
        lambda connection: connection.execute(
            update(BATCH)
            .where(BATCH.c.pk == pk)
            .values(status=BatchStatus.VALIDATING, submitter=asdict(submitter))
        )
    )


def take_back(store: Store, pk: int, submitter: ProcessIdentity) -> None:
    """Remove every trace of a batch that is not to be."""
    withdraw(store, pk, submitter)
    remove_rows(store, pk)


def sweep(store: Store, *, gone: Callable[[ProcessIdentity], bool]) -> int:
    """Remove the rows of ingests whose submitter died, and of deletes that were cut off; return how many those were.

    A submitter may have ended well since its batch was read: the batch is then visible, and stays.
    """
    rows = store.read(
        lambda connection: connection.execute(select(BATCH.c.pk, BATCH.c.submitter).where(~VISIBLE)).all()
    )
    abandoned = [row.pk for row in rows if row.submitter is None or gone(ProcessIdentity(**row.submitter))]
    swept = [pk for pk in abandoned if hide(store, pk, was=BatchStatus.VALIDATING)]
    for pk in swept:
        remove_rows(store, pk)
    return len(swept)
