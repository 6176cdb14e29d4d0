"""Find the earlier batches whose answers ``submit --reuse`` takes."""

from __future__ import annotations

import os
from pathlib import Path

from vbatch.batches.retry import RETRY_OF
from vbatch.errors import UsageError
from vbatch.store import Store, catalog
from vbatch.store.records import Batch

LAST = "last"
REUSE_OF = "reuse_of"  # the metadata key that names the batch whose answers were taken


def reusable(store: Store, wanted: str | None, *, path: Path | None) -> list[Batch]:
    """Return the wanted batch and after it its retries, whose answers are the ones that it lacks.

    ``last`` is the batch that was last submitted from this path; none where there never was one.
    Raises NoSuchBatch, AmbiguousBatch, UsageError.
    """
    if wanted is None:
        return []
    if wanted != LAST:
        return _with_retries(store, catalog.find(store, wanted))
    if path is None:
        raise UsageError(
            "--reuse last looks for an earlier batch of the file, and standard input has no name",
            hint="--reuse ID",
        )
    for batch in catalog.from_path(store, input_paths=[str(path), os.path.realpath(path)]):
        if RETRY_OF not in batch.metadata:
            return _with_retries(store, batch)
    return []


def _with_retries(store: Store, batch: Batch) -> list[Batch]:
    family = {batch.id: batch}
    for other in catalog.same_input(store, input_sha256=batch.input_sha256):  # the oldest first
        if other.metadata.get(RETRY_OF) in family:
            family[other.id] = other
    return list(family.values())
