"""Find batches: one by its id or a part of it, the newest, those whose answers ``submit --reuse`` takes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from vbatch.batches.input_file import InputFile
from vbatch.errors import UsageError
from vbatch.store import Store, catalog
from vbatch.store.records import Batch

LAST = "last"
RETRY_OF = "retry_of"  # the metadata key that names the batch whose failed requests these are
REUSE_OF = "reuse_of"  # the metadata key that names the batch whose answers were taken
EVERY = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchList:
    """Batches, the newest first. ``has_more`` says that older ones were left out."""

    batches: Sequence[Batch]
    has_more: bool


def find(store: Store, reference: str) -> Batch:
    """Return the batch with this id, or with a unique beginning or ending like it.

    Raises NoSuchBatch, AmbiguousBatch.
    """
    return catalog.find(store, reference)


def list_batches(store: Store, *, limit: int = EVERY) -> BatchList:
    """Return the newest batches."""
    found = catalog.recent(store, limit=limit + 1)
    return BatchList(batches=found[:limit], has_more=len(found) > limit)


def reusable(store: Store, reference: str | None, source: InputFile) -> list[Batch]:
    """Return the batch to reuse and after it its retries, whose answers are the ones that it lacks.

    ``last`` is the batch that was last submitted from the path of ``source``; the list is empty where there
    never was one. Raises NoSuchBatch, AmbiguousBatch, UsageError.
    """
    if reference is None:
        return []
    if reference != LAST:
        return _with_retries(store, catalog.find(store, reference))
    if source.path is None:
        raise UsageError(
            "--reuse last looks for an earlier batch of the file, and standard input has no name",
            hint="--reuse ID",
        )
    paths = [str(source.path), os.path.realpath(source.path)]
    for batch in catalog.from_path(store, input_paths=paths):
        if RETRY_OF not in batch.metadata:
            return _with_retries(store, batch)
    return []


def _with_retries(store: Store, batch: Batch) -> list[Batch]:
    family = {batch.id: batch}
    for other in catalog.same_input(store, input_sha256=batch.input_sha256):  # the oldest first
        if other.metadata.get(RETRY_OF) in family:
            family[other.id] = other
    return list(family.values())
