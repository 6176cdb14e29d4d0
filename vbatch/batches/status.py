"""How a batch stands: its object in OpenAI's shape, its failures, its pace."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime, timedelta

from vbatch import disks, processes
from vbatch.protocol import BatchObject, BatchStatus, BatchUsage, Counts
from vbatch.store import Store, catalog, failures, registry
from vbatch.store.failures import FailureGroup
from vbatch.store.records import Batch


@dataclass(frozen=True, slots=True, kw_only=True)
class Status:
    """A batch and what a person wants to know of it.

    The pace is that of the workers which hold requests of it; None while none does.
    """

    batch: Batch
    failures: tuple[FailureGroup, ...]
    requests_per_second: float | None
    remaining: timedelta | None


def status(store: Store, ref: str) -> Status:
    """Return how a batch stands. Raises NoSuchBatch, AmbiguousBatch."""
    batch = catalog.find(store, ref)
    groups = failures.failure_codes(store, pk=batch.pk) if batch.counts.failed else []
    pace = None if batch.status.final else _pace(store, batch)
    left = batch.counts.total - batch.counts.completed - batch.counts.failed
    return Status(
        batch=batch,
        failures=tuple(groups),
        requests_per_second=pace,
        remaining=timedelta(seconds=left / pace) if pace else None,
    )


def _pace(store: Store, batch: Batch) -> float | None:
    """Return the pace that the workers at work on the batch last told, as far as they live."""
    workers = registry.working_on(store, pk=batch.pk)
    return (
        sum(worker.requests_per_second or 0 for worker in workers if not processes.is_gone(worker.identity))
        or None
    )


def batch_object(batch: Batch) -> BatchObject:
    """Return the batch in OpenAI's shape, with vbatch's own fields beside OpenAI's.

    ``output_file_id`` and ``error_file_id`` are null until these files exist, and for ever where there is
    nothing to write into them, as OpenAI has it. A file id names the batch; ``output_path`` is the place.
    """
    suffix = batch.id.removeprefix("batch_")
    return BatchObject(
        id=batch.id,
        endpoint=batch.endpoint,
        model=batch.model,
        input_file_id=f"file-input-{suffix}",
        completion_window=_window(batch),
        status=batch.status,
        output_file_id=f"file-output-{suffix}" if _exists(batch, batch.output_path) else None,
        error_file_id=f"file-errors-{suffix}" if _exists(batch, batch.error_path) else None,
        created_at=_seconds(batch.created_at) or 0,
        in_progress_at=_seconds(batch.in_progress_at),
        expires_at=_seconds(batch.expires_at),
        finalizing_at=_seconds(batch.finalizing_at),
        completed_at=_seconds(batch.completed_at),
        failed_at=_seconds(batch.failed_at),
        expired_at=_seconds(batch.expired_at),
        cancelling_at=_seconds(batch.cancelling_at),
        cancelled_at=_seconds(batch.cancelled_at),
        request_counts=Counts(
            total=batch.counts.total, completed=batch.counts.completed, failed=batch.counts.failed
        ),
        usage=BatchUsage(
            input_tokens=batch.prompt_tokens,
            output_tokens=batch.completion_tokens,
            total_tokens=batch.prompt_tokens + batch.completion_tokens,
        ),
        metadata=dict(batch.metadata) or None,
        name=batch.name,
        priority=batch.priority,
        reused=batch.reused,
        input_path=batch.input_path,
        output_path=batch.output_path,
        error_path=batch.error_path,
    )


def _exists(batch: Batch, path: str) -> bool:
    ended = batch.status in (BatchStatus.COMPLETED, BatchStatus.CANCELLED, BatchStatus.EXPIRED)
    return ended and disks.exists(path)


def _window(batch: Batch) -> str:
    if batch.expires_at is None:
        return "unlimited"
    minutes = round((batch.expires_at - batch.created_at).total_seconds() / 60)
    return f"{minutes}m" if minutes % 60 else f"{minutes // 60}h"


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())
