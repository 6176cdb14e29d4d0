"""How a batch is doing: its failures, its pace and the workers; once, or until it has ended."""

from __future__ import annotations

import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from vbatch.batches.workers import AtWork, at_work
from vbatch.store import Store, catalog, failures, registry
from vbatch.store.failures import FailureGroup
from vbatch.store.records import Batch
from vbatch.system import processes

LOOK = 1.0  # seconds between two looks of ``watch``
PACE_WINDOW = 60  # looks over which ``watch`` measures the pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A batch, how its requests failed, how fast it is, and who works.

    The pace is that of the workers which hold requests of it; None while none does. ``at_work`` is None for a
    batch that has ended.
    """

    batch: Batch
    failures: Sequence[FailureGroup]
    at_work: AtWork | None
    requests_per_second: float | None
    remaining: timedelta | None


def status(store: Store, reference: str) -> Status:
    """Return how a batch is doing. Raises NoSuchBatch, AmbiguousBatch."""
    batch = catalog.find(store, reference)
    groups = failures.failure_codes(store, pk=batch.pk) if batch.counts.failed else ()
    if batch.status.final:
        return _status(batch, failures=groups)
    return _status(batch, failures=groups, at_work=at_work(store, batch), pace=_pace(store, batch))


def watch(store: Store, reference: str) -> Iterator[Status]:
    """Yield how a batch is doing once a second, and at last how it ended.

    The kinds of failure are left for the end: counting them reads every chunk that has one. The pace is that of
    this batch alone over the last looks. Raises NoSuchBatch, AmbiguousBatch.
    """
    batch = catalog.find(store, reference)
    seen: deque[tuple[float, int]] = deque(maxlen=PACE_WINDOW)
    while not batch.status.final:
        seen.append((time.monotonic(), batch.counts.completed + batch.counts.failed))
        (since, before), (now, done) = seen[0], seen[-1]
        pace = (done - before) / (now - since) if now - since >= 2 * LOOK else None
        yield _status(batch, at_work=at_work(store, batch), pace=pace)
        time.sleep(LOOK)
        batch = catalog.by_pk(store, pk=batch.pk)
    yield status(store, batch.id)


def failure_message(group: FailureGroup) -> str:
    """Return the message of a kind of failure: vbatch's own, or that of the engine's error object."""
    if group.message is not None:
        return group.message
    try:
        answer = json.loads(group.body or b"")
    except ValueError:
        return ""
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    message = error.get("message", error) if isinstance(error, dict) else error
    return message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)


def _status(
    batch: Batch,
    *,
    failures: Sequence[FailureGroup] = (),
    at_work: AtWork | None = None,
    pace: float | None = None,
) -> Status:
    left = batch.counts.total - batch.counts.completed - batch.counts.failed
    return Status(
        batch=batch,
        failures=tuple(failures),
        at_work=at_work,
        requests_per_second=pace or None,
        remaining=timedelta(seconds=left / pace) if pace else None,
    )


def _pace(store: Store, batch: Batch) -> float:
    """Return the pace that the live workers on this batch last reported, in requests per second."""
    workers = registry.working_on(store, pk=batch.pk)
    return sum(
        worker.requests_per_second or 0 for worker in workers if not processes.is_gone(worker.identity)
    )
