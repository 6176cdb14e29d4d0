"""The store at a glance: what is left and how much that takes, what is stuck or takes engines down, who serves it."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import Connection, and_, case, func, or_, select

from vbatch.errors import StoreUnreachable
from vbatch.store.database import Store, migrate
from vbatch.store.database.backends import postgresql
from vbatch.store.database.backends.postgresql import Server
from vbatch.store.finalization import written_on
from vbatch.store.records import SPLIT_AT, Batch, ChunkState, Troubled
from vbatch.store.table_objects import METADATA
from vbatch.store.tables import (
    BATCH,
    CHUNK,
    HAS_OPEN_CHUNK,
    OPEN,
    RESULT,
    RUNNING,
    UNFINISHED,
    WAITING,
)
from vbatch.system import processes

GUESSED_ANSWER = 2048  # bytes, where there is no answer yet to go by
SAMPLED = 1000  # answers

_open = CHUNK.c.total - CHUNK.c.completed - CHUNK.c.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """A model that has ``open`` requests without a result. ``waiting`` are those that no worker has leased."""

    model: str
    waiting: int
    open: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left of unfinished batches. ``files``: some of them only lack the files that this host writes."""

    models: tuple[Backlog, ...]
    files: bool


def left(store: Store, *, pk: int | None = None) -> Left:
    """Return what is left of all unfinished batches, or of one."""
    mine = written_on(store, processes.current().host)
    ready = case((CHUNK.c.state == ChunkState.READY, _open), else_=0)
    query = (
        select(CHUNK.c.model, func.sum(ready).label("waiting"), func.sum(_open).label("open"))
        .select_from(BATCH.outerjoin(CHUNK, and_(CHUNK.c.batch == BATCH.c.pk, OPEN)))
        .where(UNFINISHED, or_(CHUNK.c.model.is_not(None), mine))
        .group_by(CHUNK.c.model)
        .order_by(CHUNK.c.model)
    )
    if pk is not None:
        query = query.where(BATCH.c.pk == pk)
    rows = store.read(lambda connection: connection.execute(query).all())
    return Left(
        models=tuple(
            Backlog(model=row.model, waiting=int(row.waiting), open=int(row.open))
            for row in rows
            if row.model is not None
        ),
        files=any(row.model is None for row in rows),
    )


def ahead(store: Store, batch: Batch) -> int:
    """Return how many unfinished batches go before this one: of a higher priority, or older."""
    before = or_(
        BATCH.c.priority > batch.priority, and_(BATCH.c.priority == batch.priority, BATCH.c.pk < batch.pk)
    )
    query = select(func.count()).where(UNFINISHED, HAS_OPEN_CHUNK, before)
    return store.read(lambda connection: int(connection.execute(query).scalar_one()))


def troubled(store: Store) -> list[Troubled]:
    """Return the open chunks that are suspected: several engines, or workers in a row, crashed over them."""
    query = (
        select(BATCH.c.id, _open, CHUNK.c.engine_crashes + CHUNK.c.worker_crashes)
        .join_from(CHUNK, BATCH, CHUNK.c.batch == BATCH.c.pk)
        .where(OPEN, or_(CHUNK.c.engine_crashes >= SPLIT_AT, CHUNK.c.worker_crashes >= SPLIT_AT))
        .order_by(CHUNK.c.batch, CHUNK.c.number)
    )
    return store.read(lambda connection: [Troubled(*row) for row in connection.execute(query)])


def running(store: Store, *, workers: Collection[str]) -> int:
    """Return how many chunks are leased to these workers."""
    query = select(func.count()).select_from(CHUNK).where(RUNNING, CHUNK.c.worker.in_(workers))
    return store.read(lambda connection: int(connection.execute(query).scalar_one())) if workers else 0


def revision(store: Store) -> str | None:
    """Return the schema's revision, None for a database without vbatch's tables. Raises what the store raises."""
    return store.read(migrate.revision)


def in_use_by_older(store: Store) -> StoreUnreachable | None:
    """Return what a command would say of the processes of an older vbatch that use its tables; None without any."""
    try:
        store.read(migrate.require_unused)
    except StoreUnreachable as error:
        return error
    return None


def server(store: Store) -> Server:
    """Ask a PostgreSQL server about itself."""
    tables = tuple(METADATA.tables)
    return store.read(lambda connection: postgresql.examine(connection, tables=tables))


def bytes_to_come(store: Store) -> int:
    """Estimate how much the unfinished requests will add to the store and, as much again, to the output files.

    An answer is taken to be as long as those that are there already. Duplicates get copies.
    """
    unfinished = func.coalesce(func.sum(_open), 0)
    answered = func.coalesce(func.sum(CHUNK.c.completed), 0)
    sample = select(RESULT.c.body).limit(SAMPLED).subquery()

    def work(connection: Connection) -> int:
        missing, present = connection.execute(select(unfinished, answered).where(or_(OPEN, WAITING))).one()
        length = (
            connection.execute(select(func.avg(func.length(sample.c.body)))).scalar() if present else None
        )
        return int(missing) * round(length or GUESSED_ANSWER) * 2

    return store.read(work)
