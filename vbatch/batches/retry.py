"""Submit the failed requests of a batch again, as a new batch."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from os.path import lexists
from pathlib import Path

from vbatch.batches.find import RETRY_OF
from vbatch.batches.paths import OutputPaths, check_paths, paths_of, refuse_in_use
from vbatch.errors import WrongStatus
from vbatch.store import Store, catalog, ingest, results, staging
from vbatch.store.records import Batch, NewBatch
from vbatch.system import processes


def retry(store: Store, reference: str, *, output: Path | None = None) -> Batch:
    """Make a new batch of the requests that ended without an answer of status 2xx: same ids, same bytes.

    Raises NoSuchBatch, AmbiguousBatch, WrongStatus while the batch is unfinished or when no request of it failed,
    OutputPathError.
    """
    batch = catalog.find(store, reference)
    if not batch.status.final:
        raise WrongStatus(f"{batch.id} is still {batch.status}", hint=f"vbatch watch {batch.id}")
    staging.sweep(store, gone=processes.is_gone)  # else a killed retry keeps its paths
    batch_id = f"batch_{secrets.token_hex(12)}"
    chosen = _paths(store, batch, output)
    check_paths(chosen, source=None, batch_id=batch_id)
    refuse_in_use(store, chosen.output, chosen.errors)
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
        for request in results.failed_requests(store, pk=batch.pk):
            storing.add(request.line, request.custom_id, request.model, request.body)
        if storing.total == 0:
            raise WrongStatus(f"no request of {batch.id} failed", hint=f"vbatch status {batch.id}")
        return storing.accept(endpoint=batch.endpoint, input_sha256=batch.input_sha256)


def _paths(store: Store, batch: Batch, output: Path | None) -> OutputPaths:
    """Return the first free pair of names ``….retry.jsonl``, ``….retry2.jsonl`` …"""
    if output is not None:
        return paths_of(output)
    old_output, old_errors = Path(batch.output_path), Path(batch.error_path)
    number = 1
    while True:
        tag = "retry" if number == 1 else f"retry{number}"
        pair = OutputPaths(
            output=old_output.with_name(f"{old_output.stem}.{tag}{old_output.suffix}"),
            errors=old_errors.with_name(f"{old_errors.stem}.{tag}{old_errors.suffix}"),
        )
        if not (lexists(pair.output) or lexists(pair.errors) or _in_use(store, pair)):
            return pair
        number += 1


def _in_use(store: Store, pair: OutputPaths) -> bool:
    return bool(catalog.paths_in_use(store, paths=[str(pair.output), str(pair.errors)]))
