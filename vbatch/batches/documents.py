"""The JSON documents of the command line. Their keys are a contract: they are added to, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any

import msgspec

from vbatch import batches
from vbatch.batches import InvalidInput, Status, Submitted
from vbatch.cli.words import failure_message
from vbatch.store.records import Batch, Worker

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


def batch(value: Batch) -> dict[str, Any]:
    """Return OpenAI's batch object with vbatch's own fields, and its times once more as RFC 3339."""
    document: dict[str, Any] = msgspec.to_builtins(batches.batch_object(value))
    document["times"] = {name: _rfc3339(getattr(value, f"{name}_at")) for name in _TIMES}
    return document


def status(value: Status, workers: Sequence[Worker]) -> dict[str, Any]:
    """Return the batch object with its pace, the kinds of failure, and the workers that live."""
    return batch(value.batch) | {
        "requests_per_second": value.requests_per_second,
        "seconds_remaining": None if value.remaining is None else value.remaining.total_seconds(),
        "failures": [
            {
                "code": group.code,
                "status_code": group.status_code,
                "count": group.count,
                "attempts": group.attempts,
                "custom_id": group.custom_id,
                "message": failure_message(group),
            }
            for group in value.failures
        ],
        "workers": [
            {
                "id": worker.id,
                "host": worker.identity.host,
                "pid": worker.identity.pid,
                "model": worker.model,
                "note": worker.note,
            }
            for worker in workers
        ],
    }


def batch_list(values: Sequence[Batch], *, has_more: bool) -> dict[str, Any]:
    """Return batches as OpenAI lists them."""
    return {
        "object": "list",
        "data": [batch(value) for value in values],
        "first_id": values[0].id if values else None,
        "last_id": values[-1].id if values else None,
        "has_more": has_more,
    }


def deleted(value: Batch) -> dict[str, Any]:
    """Return what OpenAI answers to a deletion."""
    return {"id": value.id, "object": "batch", "deleted": True}


def checked(value: Submitted) -> dict[str, Any]:
    """Return what a dry run found: a file that would be accepted."""
    return {
        "object": "batch.check",
        "valid": True,
        "requests": value.requests,
        "output_path": str(value.targets.output),
        "error_path": str(value.targets.errors),
    }


def defects(error: InvalidInput) -> dict[str, Any]:
    """Return the bad lines of an input file, as a failed batch object of OpenAI has them."""
    return {
        "errors": {"object": "list", "data": msgspec.to_builtins(error.errors)},
        "errors_total": error.total,
    }


def _rfc3339(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
