"""The queue at a glance: what is left for each model, what is stuck with the dead, what takes engines down."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from sqlalchemy import and_, case, func, or_, select, text

from vbatch.protocol import BatchStatus
from vbatch.store.database import Store
from vbatch.store.records import ChunkState, Troubled
from vbatch.store.tables import OPEN, RUNNING, UNFINISHED, BatchRow, ChunkRow

_batch = BatchRow.__table__  # type: ignore[attr-defined]
_chunk = ChunkRow.__table__  # type: ignore[attr-defined]

_open = _chunk.c.total - _chunk.c.completed - _chunk.c.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Backlog:
    """A model that has requests without a result. ``waiting`` are those that no worker has leased."""

    model: str
    waiting: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What is left of unfinished batches. ``files``: there are batches that only lack their files."""

    models: tuple[Backlog, ...]
    files: bool


def left(store: Store, *, pk: int | None = None) -> Left:
    """Return what is left of all unfinished batches, or of one."""
    ready = case((_chunk.c.state == ChunkState.READY, _open), else_=0)
    query = (
        select(_chunk.c.model, func.sum(ready).label("waiting"))
        .select_from(_batch.outerjoin(_chunk, and_(_chunk.c.batch == _batch.c.pk, text(f"chunk.{OPEN}"))))
        .where(text(f"batch.{UNFINISHED}"), _batch.c.status != BatchStatus.VALIDATING)
        .group_by(_chunk.c.model)
        .order_by(_chunk.c.model)
    )
    if pk is not None:
        query = query.where(_batch.c.pk == pk)
    rows = store.read(lambda connection: connection.execute(query).all())
    return Left(
        models=tuple(
            Backlog(model=row.model, waiting=int(row.waiting)) for row in rows if row.model is not None
        ),
        files=any(row.model is None for row in rows),
    )


def troubled(store: Store, *, deaths: int) -> list[Troubled]:
    """Return the open chunks over which so many engines, or workers in a row, died."""
    query = (
        select(_batch.c.id, _open, _chunk.c.crashes + _chunk.c.losses)
        .join_from(_chunk, _batch, _chunk.c.batch == _batch.c.pk)
        .where(text(f"chunk.{OPEN}"), or_(_chunk.c.crashes >= deaths, _chunk.c.losses >= deaths))
        .order_by(_chunk.c.batch, _chunk.c.n)
    )
    return store.read(lambda connection: [Troubled(*row) for row in connection.execute(query)])


def running(store: Store, *, workers: Collection[str]) -> int:
    """Return how many chunks are leased to these workers."""
    query = (
        select(func.count()).select_from(_chunk).where(text(f"chunk.{RUNNING}"), _chunk.c.worker.in_(workers))
    )
    return store.read(lambda connection: int(connection.execute(query).scalar_one())) if workers else 0
