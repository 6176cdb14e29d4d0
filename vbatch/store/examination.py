"""What doctor asks of a store: its schema, its server, its unfinished work, and what is stuck in it.

Nothing here changes anything: no file is created, no schema migrated.
"""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Connection, func, select
from sqlmodel import SQLModel

from vbatch.store.database import Store, migrate
from vbatch.store.database.backends import postgresql
from vbatch.store.database.backends.postgresql import Server
from vbatch.store.records import SPLIT_AT, Troubled
from vbatch.store.tables import BATCH, CHUNK, OPEN, RESULT, RUNNING

GUESSED_ANSWER = 2048  # bytes, where there is no answer yet to go by
SAMPLED = 1000  # answers


def revision(store: Store) -> str | None:
    """Return the schema's revision, None for a database without vbatch's tables. Raises what the store raises."""
    return store.read(migrate.revision)


def server(store: Store) -> Server:
    """Ask a PostgreSQL server about itself."""
    tables = tuple(SQLModel.metadata.tables)
    return store.read(lambda connection: postgresql.examine(connection, tables=tables))


def bytes_to_come(store: Store) -> int:
    """Estimate how much the unfinished requests will add to the store and, as much again, to the output files.

    An answer is taken to be as long as those that are there already.
    """
    unfinished = func.coalesce(func.sum(CHUNK.c.total - CHUNK.c.completed - CHUNK.c.failed), 0)
    answered = func.coalesce(func.sum(CHUNK.c.completed), 0)
    sample = select(RESULT.c.body).limit(SAMPLED).subquery()

    def work(connection: Connection) -> int:
        missing, present = connection.execute(select(unfinished, answered).where(OPEN)).one()
        length = (
            connection.execute(select(func.avg(func.length(sample.c.body)))).scalar() if present else None
        )
        return int(missing) * round(length or GUESSED_ANSWER) * 2

    return store.read(work)


def troubled(store: Store) -> list[Troubled]:
    """Return the open chunks that are suspected: their requests were in the engine each time it died."""
    query = (
        select(BATCH.c.id, CHUNK.c.total - CHUNK.c.completed - CHUNK.c.failed, CHUNK.c.crashes)
        .join_from(CHUNK, BATCH, CHUNK.c.batch == BATCH.c.pk)
        .where(OPEN, CHUNK.c.crashes >= SPLIT_AT)
        .order_by(CHUNK.c.batch, CHUNK.c.n)
    )
    return store.read(lambda connection: [Troubled(*row) for row in connection.execute(query)])


def running(store: Store, *, workers: Collection[str]) -> int:
    """Return how many chunks are leased to these workers."""
    query = select(func.count()).select_from(CHUNK).where(RUNNING, CHUNK.c.worker.in_(workers))
    return store.read(lambda connection: int(connection.execute(query).scalar_one())) if workers else 0
