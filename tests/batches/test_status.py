"""What ``status`` tells of a batch: the pace of those who work on it, never one that idle nights water down."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.rigs.filling import answers_to, claim, take_in, worker
from vbatch import batches
from vbatch.protocol import BatchStatus
from vbatch.store import Store, queue, registry
from vbatch.system import processes


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
    registry.heartbeat(store, worker=alive, models=["m"], note=None, requests_per_second=50.0)
    registry.heartbeat(store, worker=gone, models=["m"], note=None, requests_per_second=50.0)
    status = batches.status(store, batch.id)
    assert (status.requests_per_second, status.remaining) == (50.0, timedelta(seconds=10))
    registry.stop(store, worker=alive)
    status = batches.status(store, batch.id)
    assert (status.requests_per_second, status.remaining) == (None, None)


def test_a_file_that_cannot_be_looked_at_is_one_that_is_not_there(store: Store) -> None:
    """As in a folder that may not be entered, or whose server is away. Mutant: ``Path.exists``, which raises."""
    batch = take_in(store, 3, output_path=f"/{'x' * 300}")
    ended = batches.batch_object(replace(batch, status=BatchStatus.COMPLETED))
    assert ended.output_file_id is None


@pytest.mark.parametrize(
    ("hours", "window"), [(12.0, "12h"), (1 / 3, "20m"), (1.5, "90m"), (None, "unlimited")]
)
def test_the_window_is_what_was_asked_for(store: Store, hours: float | None, window: str) -> None:
    batch = take_in(store, 3)
    expires = None if hours is None else batch.created_at + timedelta(hours=hours)
    assert batches.batch_object(replace(batch, expires_at=expires)).completion_window == window


def test_another_batch_of_the_model_has_a_pace_of_its_own(store: Store) -> None:
    first, second = take_in(store, 3), take_in(store, 3)
    alive = worker(store, identity=processes.current())
    claim(store, alive)
    registry.heartbeat(store, worker=alive, models=["m"], note=None, requests_per_second=50.0)
    assert batches.status(store, first.id).requests_per_second == 50.0
    assert batches.status(store, second.id).requests_per_second is None
