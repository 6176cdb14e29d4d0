"""Submit the failed requests of a batch again, as a new batch."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from os.path import lexists
from pathlib import Path

from vbatch import processes
from vbatch.batches.paths import Targets, check_targets, in_use, targets_of
from vbatch.errors import WrongStatus
from vbatch.store import Store, answers, ingest, unaccepted
from vbatch.store.records import Batch, NewBatch

RETRY_OF = "retry_of"  # the metadata key that names the batch whose failed requests these are


def retry(store: Store, batch: Batch, *, output: Path | None = None) -> Batch:
    """Make a new batch of the requests that ended without an answer of status 2xx: same ids, same bytes.

    Raises WrongStatus while the batch is unfinished or when nothing of it failed, OutputPathError.
    """
    if not batch.status.final:
        raise WrongStatus(f"{batch.id} is still {batch.status}.", hint=f"vbatch watch {batch.id}")
    unaccepted.sweep(store, gone=processes.is_gone)  # else a killed retry keeps its paths
    batch_id = f"batch_{secrets.token_hex(12)}"
    chosen = _targets(store, batch, output)
    check_targets(store, chosen, source=None, batch_id=batch_id)
    new = NewBatch(
        id=batch_id,
        endpoint=batch.endpoint,
        name=batch.name,
        priority=batch.priority,
        metadata={**batch.metadata, RETRY_OF: batch.id},
        input_path=batch.input_path,
        output_path=str(chosen.output),
        error_path=str(chosen.errors),
        expires_at=None,
        created_at=datetime.now(UTC),
    )
    with ingest.ingest(store, new=new, submitter=processes.current()) as storing:
        for request in answers.failed_requests(store, pk=batch.pk):
            storing.add(request.line, request.custom_id, request.model, request.body)
        if storing.total == 0:
            raise WrongStatus(f"No request of {batch.id} failed.", hint=f"vbatch status {batch.id}")
        return storing.accept(endpoint=batch.endpoint, input_sha256=batch.input_sha256, input_bytes=0)


def _targets(store: Store, batch: Batch, output: Path | None) -> Targets:
    """Return the first free pair of names ``….retry.jsonl``, ``….retry2.jsonl`` …"""
    if output is not None:
        return targets_of(output)
    old_output, old_errors = Path(batch.output_path), Path(batch.error_path)
    number = 1
    while True:
        tag = "retry" if number == 1 else f"retry{number}"
        pair = Targets(
            output=old_output.with_name(f"{old_output.stem}.{tag}{old_output.suffix}"),
            errors=old_errors.with_name(f"{old_errors.stem}.{tag}{old_errors.suffix}"),
        )
        if not (lexists(pair.output) or lexists(pair.errors) or in_use(store, pair)):
            return pair
        number += 1
