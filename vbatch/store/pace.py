"""How fast a model was on a host: of a worker that runs it now, else of the batches that it has answered there."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import Connection, func, select

from vbatch.protocol import BatchStatus
from vbatch.store import registry
from vbatch.store.catalog import to_batches
from vbatch.store.database import Store
from vbatch.store.records import DEDUPE, Batch, Worker
from vbatch.store.tables import BATCH

LOOKED_AT = 20  # batches of the model
SHORTEST = 2.0  # seconds; what took less says nothing


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """Requests per second, and what had them: a batch's id, or ``worker``."""

    requests_per_second: float
    source: str


def measured(store: Store, *, model: str, host: str) -> Pace | None:
    """Return the pace of a model on a host; None where it has never run there for long enough."""
    for worker in registry.live(store):
        if worker.identity.host == host and model in worker.models and worker.requests_per_second:
            return Pace(requests_per_second=worker.requests_per_second, source="worker")
    workers = [worker for worker in registry.recent(store, limit=LOOKED_AT) if worker.identity.host == host]
    found = store.read(lambda connection: _of_batches(connection, model, host, workers))
    return max(found, key=lambda pace: pace.requests_per_second, default=None)


def _of_batches(connection: Connection, model: str, host: str, workers: Sequence[Worker]) -> list[Pace]:
    query = (
        select(BATCH)
        .where(BATCH.c.status == BatchStatus.COMPLETED, BATCH.c.model == model, BATCH.c.host == host)
        .order_by(BATCH.c.pk.desc())
        .limit(LOOKED_AT)
    )
    paces = []
    for batch in to_batches(connection, query):
        if batch.finalizing_at is None or DEDUPE in batch.metadata:  # of that, most did not run
            continue
        began = _began(connection, batch, batch.finalizing_at, workers)
        seconds = (batch.finalizing_at - began).total_seconds()
        ran = batch.counts.completed + batch.counts.failed - batch.reused
        if seconds >= SHORTEST and ran > 0:
            paces.append(Pace(requests_per_second=ran / seconds, source=batch.id))
    return paces


def _began(connection: Connection, batch: Batch, ended: datetime, workers: Sequence[Worker]) -> datetime:
    """Return when a batch may have begun: it was there, a worker was, and the batch that ended last had ended."""
    before = connection.execute(
        select(func.max(BATCH.c.finalizing_at)).where(BATCH.c.finalizing_at < ended)
    ).scalar_one()
    there = [
        worker.started_at
        for worker in workers
        if worker.started_at < ended and (worker.stopped_at is None or worker.stopped_at >= ended)
    ]
    moments = (batch.in_progress_at, before, min(there, default=None))
    return max((moment for moment in moments if moment is not None), default=ended)
