"""What doctor reads of the queue: chunks that are stuck with the dead, and those that take engines down."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import func, or_, select, text

from vbatch.store.database import Store
from vbatch.store.records import Troubled
from vbatch.store.tables import OPEN, RUNNING, BatchRow, ChunkRow

_batch = BatchRow.__table__  # type: ignore[attr-defined]
_chunk = ChunkRow.__table__  # type: ignore[attr-defined]

_open = _chunk.c.total - _chunk.c.completed - _chunk.c.failed


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
