"""The JSON documents of batches: OpenAI's batch object, with vbatch's own fields beside it, and what surrounds it.

Their keys are a contract: they are added to, never changed.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

import msgspec

from vbatch import pausing
from vbatch.batches.workers import AtWork, Block, Blocks, is_silent
from vbatch.protocol import BatchError, BatchErrors, BatchObject, BatchStatus, BatchUsage, Counts
from vbatch.store.records import Batch, Worker
from vbatch.system import disks

if TYPE_CHECKING:
    from vbatch.batches.content import InvalidInput
    from vbatch.batches.estimate import Estimate
    from vbatch.batches.find import BatchList
    from vbatch.batches.results import Shown
    from vbatch.batches.status import Status
    from vbatch.batches.submit import Checked

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
        endpoint=batch.endpoint or None,
        model=batch.model,
        input_file_id=batch.input_file or f"file-input-{suffix}",
        errors=_errors(batch),
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


def batch_document(
    batch: Batch,
    blocked: Blocks = Blocks(),  # noqa: B008  (it is frozen)
    *,
    files_wait_for: str | None = None,
) -> dict[str, Any]:
    """Return the batch object, its times once more as RFC 3339, and what of it waits for a model in vain.

    ``blocked`` is null, or the model for which most requests wait; ``blocked_models`` are all of them.
    ``files_wait_for`` is the other host that is to write the files, where nothing else is left.
    """
    document: dict[str, Any] = msgspec.to_builtins(batch_object(batch))
    document |= {"cut_off": batch.cut_off, "empty": batch.empty, "skipped": batch.skipped}
    document["ignored"] = [dict(each) for each in batch.ignored]
    document["times"] = {name: _rfc3339(getattr(batch, f"{name}_at")) for name in _TIMES}
    models = sorted(blocked.models, key=lambda block: -block.requests)
    document["blocked_models"] = [_block(block) for block in models]
    document["blocked"] = next(iter(document["blocked_models"]), None)
    document["files_wait_for"] = files_wait_for
    return document


def served_document(batch: Batch) -> dict[str, Any]:
    """Return the batch for a program on another machine: no path of this one, and files by what the store has.

    The server has the content of these files, or makes it of the store.
    """
    document: dict[str, Any] = msgspec.to_builtins(batch_object(batch))
    for name in ("input_path", "output_path", "error_path"):
        del document[name]
    ended, counts, suffix = batch.status.final, batch.counts, batch.id.removeprefix("batch_")
    unanswered = counts.total - counts.completed
    document["output_file_id"] = f"file-output-{suffix}" if ended and counts.completed else None
    document["error_file_id"] = f"file-errors-{suffix}" if ended and unanswered else None
    return document | {"cut_off": batch.cut_off, "empty": batch.empty}


def _block(block: Block) -> dict[str, Any]:
    return {
        "model": block.model,
        "endpoint": block.url or None,
        "requests": block.requests,
        "reason": block.reason,
        "hint": block.hint,
        "host": block.host,
        "since": _rfc3339(block.since),
    }


def status_document(status: Status) -> dict[str, Any]:
    """Return the batch object with its pace, the kinds of failure, and the live workers."""
    at_work = status.at_work or AtWork(workers=(), unserved=(), command="")
    return batch_document(status.batch, at_work.blocked, files_wait_for=at_work.files_wait_for) | {
        "requests_per_second": status.requests_per_second,
        "tokens_per_second": status.tokens_per_second,
        "duplicates": status.duplicates,
        "seconds_remaining": None if status.remaining is None else status.remaining.total_seconds(),
        "failures": [
            {
                "code": group.code,
                "status_code": group.status_code,
                "count": group.count,
                "attempts": group.attempts,
                "custom_id": group.custom_id,
                "message": group.message,
            }
            for group in status.failures
        ],
        "workers": [_worker(worker) for worker in at_work.workers],
        "paused": pausing.document(at_work.paused),
    }


def _worker(worker: Worker) -> dict[str, Any]:
    return {
        "id": worker.id,
        "host": worker.identity.host,
        "pid": worker.identity.pid,
        "model": worker.model,
        "gpus": list(worker.gpus),
        "note": worker.note,
        "silent": is_silent(worker),
        "silent_seconds": round(worker.silent.total_seconds(), 1),
    }


def list_document(found: BatchList) -> dict[str, Any]:
    """Return batches as OpenAI lists them."""
    return {
        "object": "list",
        "data": [
            batch_document(
                batch,
                found.blocked.get(batch.pk, Blocks()),
                files_wait_for=found.files_wait_for.get(batch.pk),
            )
            for batch in found.batches
        ],
        "workers": [_worker(worker) for worker in found.workers],
        "first_id": found.batches[0].id if found.batches else None,
        "last_id": found.batches[-1].id if found.batches else None,
        "has_more": found.has_more,
    }


def deleted_document(batch: Batch) -> dict[str, Any]:
    """Return what OpenAI answers to a deletion."""
    return {"id": batch.id, "object": "batch", "deleted": True}


def checked_document(checked: Checked, estimate: Estimate) -> dict[str, Any]:
    """Return what a dry run found: a file that would be accepted, and what it is estimated to take."""
    return {
        "object": "batch.check",
        "valid": True,
        "requests": checked.requests,
        "skipped": checked.skipped,
        "duplicates": checked.seen.duplicates,
        "ignored": [asdict(each) for each in checked.ignored],
        "output_path": str(checked.paths.output),
        "error_path": str(checked.paths.errors),
        "estimate": {
            "models": [
                {
                    "model": each.model,
                    "requests": each.requests,
                    "counted": each.counted,
                    "own_tokenizer": each.own_tokenizer,
                    "tokens_in": each.tokens_in,
                    "most_tokens_out": each.most_out,
                    "context": each.context,
                    "beyond_context": each.beyond,
                    "requests_per_second": None if each.pace is None else each.pace.requests_per_second,
                    "seconds": None if each.duration is None else each.duration.total_seconds(),
                }
                for each in estimate.models
            ],
            "disk_bytes": estimate.disk,
            "free_bytes": estimate.free,
        },
    }


def shown_document(shown: Shown) -> dict[str, Any]:
    """Return one request, and its line of the output or error file; null while it is not finished."""
    return {
        "batch_id": shown.batch.id,
        "custom_id": shown.custom_id,
        "line": shown.line,
        "request": msgspec.json.decode(shown.request),
        "result": None if shown.result is None else msgspec.json.decode(shown.result),
    }


def defects_document(error: InvalidInput) -> dict[str, Any]:
    """Return the bad lines of an input file, as a failed batch object of OpenAI has them."""
    return {
        "errors": {"object": "list", "data": msgspec.to_builtins(error.errors)},
        "errors_total": error.total,
    }


def _errors(batch: Batch) -> BatchErrors | None:
    if not batch.errors:
        return None
    return BatchErrors(data=[msgspec.convert(each, BatchError) for each in batch.errors])


def _exists(batch: Batch, path: str) -> bool:
    ended = batch.status in (BatchStatus.COMPLETED, BatchStatus.CANCELLED, BatchStatus.EXPIRED)
    return ended and disks.exists(path)


def _window(batch: Batch) -> str:
    if batch.asked is not None:
        return str(batch.asked["completion_window"])
    if batch.expires_at is None:
        return "unlimited"
    minutes = round((batch.expires_at - batch.created_at).total_seconds() / 60)
    return f"{minutes}m" if minutes % 60 else f"{minutes // 60}h"


def _seconds(moment: datetime | None) -> int | None:
    return None if moment is None else int(moment.timestamp())


def _rfc3339(moment: datetime | None) -> str | None:
    return None if moment is None else moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
