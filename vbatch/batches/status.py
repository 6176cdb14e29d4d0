"""How a batch is doing: its failures, its pace and the workers; once, or until it has ended."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

from vbatch import recovery
from vbatch.batches import writing
from vbatch.batches.find import deduped
from vbatch.batches.workers import AtWork, at_work
from vbatch.errors import OnlyBlocked
from vbatch.store import Store, catalog, failures, overview, registry
from vbatch.store.failures import FailureGroup
from vbatch.store.records import Batch
from vbatch.system import processes
from vbatch.text import harmless

LOOK = 1.0  # seconds between two looks of ``watch``
PACE_WINDOW = 60  # looks over which ``watch`` measures the pace


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A batch, how its requests failed, how fast it is, and who works.

    The pace is that of the workers which hold requests of it; None while none does. ``at_work`` is None for a
    batch that has ended. ``ahead`` are the unfinished batches that go before it. ``duplicates`` do not run: they get
    the outcome of an identical request at the end.
    """

    batch: Batch
    failures: Sequence[FailureGroup]
    at_work: AtWork | None
    requests_per_second: float | None
    tokens_per_second: float | None = None
    remaining: timedelta | None
    ahead: int = 0
    duplicates: int = 0


def status(store: Store, reference: str) -> Status:
    """Return how a batch is doing. Raises NoSuchBatch, AmbiguousBatch."""
    batch = catalog.find(store, reference)
    groups = failures.failure_codes(store, pk=batch.pk) if batch.counts.failed else ()
    if batch.status.final:
        return _status(batch, failures=groups)
    return _status(
        batch,
        failures=groups,
        at_work=at_work(store, batch),
        pace=_pace(store, batch),
        ahead=overview.ahead(store, batch),
        same=_duplicates(store, batch),
    )


def watch(store: Store, reference: str) -> Iterator[Status]:
    """Yield how a batch is doing once a second, and at last how it ended.

    The kinds of failure are left for the end: counting them reads every chunk that has one. The pace is that of
    this batch alone over the last looks. Files that wait for this host are written. Raises NoSuchBatch, AmbiguousBatch,
    VbatchError where they cannot be written.
    """
    batch = catalog.find(store, reference)
    seen: deque[tuple[float, int]] = deque(maxlen=PACE_WINDOW)
    while not batch.status.final:
        seen.append((time.monotonic(), batch.counts.completed + batch.counts.failed))
        (since, before), (now, done) = seen[0], seen[-1]
        pace = (done - before) / (now - since) if now - since >= 2 * LOOK else None
        yield _status(
            batch,
            at_work=at_work(store, batch),
            pace=pace,
            ahead=overview.ahead(store, batch),
            same=_duplicates(store, batch),
        )
        time.sleep(LOOK)
        batch = catalog.by_pk(store, pk=batch.pk)
        if writing.due_here(store, batch, recovery.alive(store)):
            batch = _written(store, batch)
    yield status(store, batch.id)


def _written(store: Store, batch: Batch) -> Batch:
    from vbatch.batches.finalize import finalize_here

    try:
        return finalize_here(store, batch)
    except OSError as error:
        raise writing.refusal(batch, error) from error


def only_blocked(status: Status) -> OnlyBlocked:
    """Return the error of a batch of which nothing is left but requests for models that cannot be loaded."""
    blocks = status.at_work.blocked.models if status.at_work is not None else ()
    return OnlyBlocked(
        f"only requests that no model here can answer are left of {status.batch.id}",
        causes=[(harmless(block.model), block.reason, block.hint) for block in blocks],
    )


def _status(
    batch: Batch,
    *,
    failures: Sequence[FailureGroup] = (),
    at_work: AtWork | None = None,
    pace: float | None = None,
    ahead: int = 0,
    same: int = 0,
) -> Status:
    left = batch.counts.total - batch.counts.completed - batch.counts.failed - same
    return Status(
        batch=batch,
        failures=tuple(failures),
        at_work=at_work,
        requests_per_second=pace or None,
        tokens_per_second=_tokens(batch, pace),
        remaining=timedelta(seconds=left / pace) if pace else None,
        ahead=ahead,
        duplicates=same,
    )


def _duplicates(store: Store, batch: Batch) -> int:
    if not deduped(batch):
        return 0
    from vbatch.store import duplicates

    return duplicates.waiting(store, pk=batch.pk)


def _tokens(batch: Batch, pace: float | None) -> float | None:
    """Return how many tokens are written a second, by the answers so far and the pace."""
    done = batch.counts.completed + batch.counts.failed - batch.reused
    return batch.completion_tokens / done * pace if pace and done > 0 and not batch.reused else None


def _pace(store: Store, batch: Batch) -> float:
    """Return the pace that the live workers on this batch last reported, in requests per second."""
    workers = registry.working_on(store, pk=batch.pk)
    return sum(
        worker.requests_per_second or 0 for worker in workers if not processes.is_gone(worker.identity)
    )
