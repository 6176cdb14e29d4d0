"""Which batches ``submit --reuse`` looks through."""

from __future__ import annotations

import secrets
from pathlib import Path

from tests.rigs.commands import chats
from tests.rigs.filling import answers_to, claim, worker
from tests.rigs.queued import Queued, queued
from vbatch import batches
from vbatch.store import Store, catalog, finalization, queue, registry


def work(store: Store, *, statuses: list[int]) -> None:
    """Answer the waiting batch, its requests with these statuses, and end it."""
    who = worker(store)
    (lease,) = claim(store, who, model="echo")
    for request, status in zip(lease.requests, statuses, strict=True):
        queue.flush(store, worker=who, results=answers_to(lease, [request], status=status))
    for batch in finalization.to_finalize(store, by=who):
        batches.finalize(store, batch, by=who)
    registry.stop(store, worker=who)


def again(store: Store, folder: Path, reuse: str, *, name: str = "prompts") -> Queued:
    output = folder / f"{secrets.token_hex(4)}.jsonl"
    return queued(store, folder, chats(4), name=name, reuse=reuse, output=output)


def test_a_retry_gives_its_answers_for_the_batch_it_completes(store: Store, tmp_path: Path) -> None:
    """Mutants: reusable without _with_retries; ``last`` takes the retry for the last batch of the file."""
    first = queued(store, tmp_path, chats(4))
    work(store, statuses=[200, 500, 400, 200])
    batches.retry(store, first.id)
    work(store, statuses=[200, 400])
    for reuse in ("last", first.id):
        second = again(store, tmp_path, reuse)
        assert (second.batch.reused, second.batch.counts.completed) == (3, 3)
        assert second.batch.metadata == {"reuse_of": first.id}
        batches.cancel(store, second.id)
        if reuse == "last":
            catalog.delete_batch(store, pk=second.batch.pk)


def test_last_is_the_newest_batch_of_the_same_path(store: Store, tmp_path: Path) -> None:
    queued(store, tmp_path, chats(4))
    work(store, statuses=[200] * 4)
    other = queued(store, tmp_path, chats(4), name="other")
    work(store, statuses=[200, 200, 500, 500])
    assert again(store, tmp_path, "last", name="other").batch.reused == 2
    work(store, statuses=[200, 200])
    third = again(store, tmp_path, "last", name="other")
    assert third.batch.reused == 4
    assert third.batch.status == "completed", "nothing is left to run: the files are written at once"
    assert len(third.output()) == 4
    assert other.batch.reused == 0
