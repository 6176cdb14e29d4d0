"""What ``status`` tells of a batch: the pace of those who work on it, never one that idle nights water down."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from tests.store.filling import answers_to, claim, take_in, worker
from vbatch import batches, processes
from vbatch.store import Store, queue, registry


def test_the_pace_is_that_of_the_workers_at_work(store: Store) -> None:
    """Mutant: the average since the batch was accepted, which counts every hour in which nobody worked."""
    batch = take_in(store, 600)
    assert batches.status(store, batch.id).requests_per_second is None
    me = processes.current()
    alive = worker(store, identity=me)
    gone = worker(store, identity=replace(me, start_ticks=me.start_ticks + 1))
    (lease,) = claim(store, alive)
    claim(store, gone)
    queue.flush(store, worker=alive, results=answers_to(lease, lease.requests[:100]))
    status = batches.status(store, batch.id)
    assert (status.requests_per_second, status.remaining) == (None, None)
    registry.beat(store, worker=alive, model="m", note=None, requests_per_second=50.0)
    registry.beat(store, worker=gone, model="m", note=None, requests_per_second=50.0)
    status = batches.status(store, batch.id)
    assert (status.requests_per_second, status.remaining) == (50.0, timedelta(seconds=10))
    registry.stop(store, worker=alive)
    status = batches.status(store, batch.id)
    assert (status.requests_per_second, status.remaining) == (None, None)


def test_another_batch_of_the_model_has_a_pace_of_its_own(store: Store) -> None:
    first, second = take_in(store, 3), take_in(store, 3)
    alive = worker(store, identity=processes.current())
    claim(store, alive)
    registry.beat(store, worker=alive, model="m", note=None, requests_per_second=50.0)
    assert batches.status(store, first.id).requests_per_second == 50.0
    assert batches.status(store, second.id).requests_per_second is None
