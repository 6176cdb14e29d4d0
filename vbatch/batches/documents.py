"""The JSON documents of batches: OpenAI's batch object, with vbatch's own fields beside it, and what surrounds it.

Their keys are a contract: they are added to, never changed.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import msgspec

from vbatch.batches.find import BatchList
from vbatch.batches.status import Status, failure_message
from vbatch.batches.submit import Checked, InvalidInput
from vbatch.protocol import BatchObject, BatchStatus, BatchUsage, Counts
from vbatch.store.records import Batch
from vbatch.system import disks

# In which order a batch goes through its times.
_TIMES = (
    "created",
    "in_progress",
    "expires",
    "finalizing",
    "completed",
    "expired",
    "cancelling",
    "cancelled",
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


def batch_document(batch: Batch) -> dict[str, Any]:
    """Return the batch object, and its times once more as RFC 3339."""
    document: dict[str, Any] = msgspec.to_builtins(batch_object(batch))
    document["times"] = {name: _rfc3339(getattr(batch, f"{name}_at")) for name in _TIMES}
    return document


def status_document(status: Status) -> dict[str, Any]:
    """Return the batch object with its pace, the kinds of failure, and the live workers."""
    return batch_document(status.batch) | {
        "requests_per_second": status.requests_per_second,
        "seconds_remaining": None if status.remaining is None else status.remaining.total_seconds(),
        "failures": [
            {
                "code": group.code,
                "status_code": group.status_code,
                "count": group.count,
                "attempts": group.attempts,
                "custom_id": group.custom_id,
                "message": failure_message(group),
            }
            for group in status.failures
        ],
        "workers": [
            {
                "id": worker.id,
                "host": worker.identity.host,
                "pid": worker.identity.pid,
                "model": worker.model,
                "note": worker.note,
            }
            for worker in (status.at_work.workers if status.at_work else ())
        ],
    }


def list_document(found: BatchList) -> dict[str, Any]:
    """Return batches as OpenAI lists them."""
    return {
        "object": "list",
        "data": [batch_document(batch) for batch in found.batches],
        "first_id": found.batches[0].id if found.batches else None,
        "last_id": found.batches[-1].id if found.batches else None,
        "has_more": found.has_more,
    }


def deleted_document(batch: Batch) -> dict[str, Any]:
    """Return what OpenAI answers to a deletion."""
    return {"id": batch.id, "object": "batch", "deleted": True}


def checked_document(checked: Checked) -> dict[str, Any]:
    """Return what a dry run found: a file that would be accepted."""
    return {
        "object": "batch.check",
        "valid": True,
        "requests": checked.requests,
        "output_path": str(checked.paths.output),
        "error_path": str(checked.paths.errors),
    }


def defects_document(error: InvalidInput) -> dict[str, Any]:
    """Return the bad lines of an input file, as a failed batch object of OpenAI has them."""
    return {
        "errors": {"object": "list", "data": msgspec.to_builtins(error.errors)},
        "errors_total": error.total,
    }


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


def _rfc3339(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
