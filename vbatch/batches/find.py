"""Find batches: one by its id or a part of it, the newest, those whose answers ``submit --reuse`` takes."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from vbatch import recovery
from vbatch.batches.workers import Blocks, blocks
from vbatch.batches.writing import waits_for
from vbatch.errors import UsageError
from vbatch.protocol import BatchStatus
from vbatch.store import Store, catalog
from vbatch.store.records import DEDUPE, Batch, Worker

if TYPE_CHECKING:
    from vbatch.batches.input_file import InputFile

QUEUED, BLOCKED = _FOR_PEOPLE = ("queued", "blocked")
STATUSES = (*(str(status) for status in BatchStatus), *_FOR_PEOPLE)
RESERVED = frozenset({DEDUPE})  # keys of the metadata that vbatch alone sets
RETRY_OF = "retry_of"  # the metadata key that names the batch whose failed requests these are
REUSE_OF = "reuse_of"  # the metadata key that names the batch whose answers were taken
EVERY = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchList:
    """Batches, the newest first. ``has_more`` says that older ones were left out.

    ``blocked`` says what of them waits for a model that cannot be loaded, ``files_wait_for`` which other host the files
    of one wait for, by primary key. ``workers`` are those that are alive.
    """

    batches: Sequence[Batch]
    has_more: bool
    blocked: Mapping[int, Blocks]
    files_wait_for: Mapping[int, str] = field(default_factory=dict)
    workers: Sequence[Worker] = ()


def find(store: Store, reference: str) -> Batch:
    """Return the batch that a person means: by its id, a part of it, its name, or ``last``.

    Raises NoSuchBatch, AmbiguousBatch.
    """
    return catalog.find(store, reference)


def list_batches(
    store: Store, *, limit: int = EVERY, status: str | None = None, name: str | None = None
) -> BatchList:
    """Return the newest batches: all, or those of a status, or of exactly this name.

    Besides OpenAI's eight there are two statuses for people, both within ``in_progress``: ``queued`` (no worker has
    begun it) and ``blocked`` (what is left waits for models that cannot be loaded). Raises UsageError for another one.
    """
    if status is not None and status not in STATUSES:
        raise UsageError(
            f"--status {status} is not one of {', '.join(STATUSES)}",
            hint="vbatch list --status queued",
        )
    wanted = (
        None if status is None else BatchStatus.IN_PROGRESS if status in _FOR_PEOPLE else BatchStatus(status)
    )
    most = EVERY if status in _FOR_PEOPLE else limit + 1
    found = catalog.recent(store, limit=most, statuses=None if wanted is None else (wanted,), name=name)
    blocked = blocks(store)
    entirely = {pk for pk, each in blocked.items() if each.entirely}
    if status == BLOCKED:
        found = [batch for batch in found if batch.pk in entirely]
    elif status == QUEUED:
        found = [batch for batch in found if not batch.begun and batch.pk not in entirely]
    hosts = {batch.pk: host for batch in found[:limit] if (host := waits_for(store, batch)) is not None}
    return BatchList(
        batches=found[:limit],
        has_more=len(found) > limit,
        blocked=blocked,
        files_wait_for=hosts,
        workers=recovery.alive(store),
    )


def status_word(batch: Batch, *, blocked: bool = False) -> str:
    """Return the status in a word for people; ``blocked``: nothing but blocked requests is left of the batch."""
    if batch.status is BatchStatus.IN_PROGRESS:
        if blocked:
            return BLOCKED
        if not batch.begun:
            return QUEUED
    return batch.status.replace("_", " ")


def page(store: Store, *, limit: int, after: str | None = None) -> BatchList:
    """Return the newest batches, or those that follow ``after``, whose key is the place in the list.

    Raises NoSuchBatch for an ``after`` that is not there.
    """
    last = None if after is None else catalog.find(store, after).pk
    found = catalog.recent(store, limit=limit + 1, after=last)
    return BatchList(batches=found[:limit], has_more=len(found) > limit, blocked={})


def reusable(store: Store, reference: str | None, source: InputFile) -> list[Batch]:
    """Return the batch to reuse and after it its retries, whose answers are the ones that it lacks.

    ``last`` is the batch that was last submitted from the path of ``source``; the list is empty where there
    never was one. Raises NoSuchBatch, AmbiguousBatch, UsageError.
    """
    if reference is None:
        return []
    if reference != catalog.LAST:
        return with_retries(store, catalog.find(store, reference))
    if source.path is None:
        raise UsageError(
            "--reuse last looks for an earlier batch of the file, and standard input has no name",
            hint="--reuse ID",
        )
    paths = [str(source.path), os.path.realpath(source.path)]
    for batch in catalog.from_path(store, input_paths=paths):
        if RETRY_OF not in batch.metadata:
            return with_retries(store, batch)
    return []


def deduped(batch: Batch) -> bool:
    """Return whether identical requests of a batch run once."""
    return batch.metadata.get(DEDUPE) == "true"


def with_retries(store: Store, batch: Batch) -> list[Batch]:
    """Return a batch and all batches of its failed requests, the oldest first."""
    family = {batch.id: batch}
    for other in catalog.same_input(store, input_sha256=batch.input_sha256):  # the oldest first
        if other.metadata.get(RETRY_OF) in family:
            family[other.id] = other
    return list(family.values())
