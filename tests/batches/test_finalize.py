"""The files of a batch are written by whoever can, once, and only of a batch that is still there."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rigs.filling import answers_to, claim, take_in, worker
from vbatch import batches
from vbatch.errors import NoSuchBatch
from vbatch.store import Store, catalog, finalization, queue, results
from vbatch.store.records import Batch


def answered(store: Store, folder: Path) -> tuple[Batch, str]:
    """A batch whose requests are all answered, and the worker that did it."""
    batch = take_in(store, 3, output_path=str(folder / "out.jsonl"), error_path=str(folder / "errors.jsonl"))
    who = worker(store)
    (lease,) = claim(store, who)
    queue.flush(store, worker=who, results=answers_to(lease))
    return batch, who


def test_a_batch_that_one_worker_cannot_write_is_offered_to_the_others(store: Store, tmp_path: Path) -> None:
    """Its disk is mounted elsewhere, say. Mutant: a finalizer that keeps the batch for as long as it lives."""
    batch, who = answered(store, tmp_path / "gone")
    other = worker(store, pid=2)
    with pytest.raises(OSError, match="No such file"):
        batches.finalize(store, batch, by=who)
    (offered,) = finalization.to_finalize(store, by=other)
    (tmp_path / "gone").mkdir()
    ended = batches.finalize(store, offered, by=other)
    assert ended is not None
    assert ended.status.final


def test_no_file_is_made_of_a_batch_that_is_being_deleted(store: Store, tmp_path: Path) -> None:
    """Half of its rows may be gone already. Mutant: ``answers`` that does not look at the end whether it is there."""
    batch, who = answered(store, tmp_path)
    reading = results.in_file_order(store, pk=batch.pk)
    assert finalization.start_finalizing(store, pk=batch.pk, by=who) is not None
    next(reading)
    catalog.delete_batch(store, pk=batch.pk, force=True)
    with pytest.raises(NoSuchBatch):
        list(reading)
    with pytest.raises(NoSuchBatch):
        finalization.finish(store, pk=batch.pk, by=who, output_path="/o", error_path="/e")
    assert list(tmp_path.glob("*.jsonl")) == []
