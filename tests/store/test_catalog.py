"""Batches as people see them: found, cancelled, expired, finalized by one, deleted."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

import pytest

from tests.rigs.filling import answers_to, claim, code_of, count, take_in, worker
from vbatch.errors import AmbiguousBatch, NoSuchBatch, WrongStatus
from vbatch.protocol import BatchStatus
from vbatch.store import Store, catalog, crashes, finalization, queue, registry, results
from vbatch.store.records import Batch


def work_off(store: Store, batch: Batch) -> None:
    """Answer everything that is ready."""
    who = worker(store)
    while leases := claim(store, who):
        for lease in leases:
            queue.flush(store, worker=who, results=answers_to(lease))


def complete(store: Store, batch: Batch, by: str = "test") -> Batch:
    work_off(store, batch)
    assert finalization.start_finalizing(store, pk=batch.pk, by=by) is not None
    return finalization.finish(store, pk=batch.pk, by=by, output_path="/out", error_path="/err")


@pytest.mark.parametrize("ref", ["batch_0123abcd", "batch_01", "0123", "abcd", "23abcd"])
def test_a_batch_is_found_by_its_id_its_beginning_or_its_ending(store: Store, ref: str) -> None:
    batch = take_in(store, id="batch_0123abcd")
    take_in(store, id="batch_f0ee9999")
    assert catalog.find(store, ref) == batch


@pytest.mark.parametrize(
    "ref", ["", "%", "_", "batch%", "01_3abcd", "%abcd", "\\", "batch_0123abcd\\", "23ab", "'"]
)
def test_what_is_no_part_of_an_id_finds_nothing(store: Store, ref: str) -> None:
    take_in(store, id="batch_0123abcd")
    with pytest.raises(NoSuchBatch) as refused:
        catalog.find(store, ref)
    assert not isinstance(refused.value, AmbiguousBatch)


def test_an_ambiguous_name_lists_its_candidates(store: Store) -> None:
    for batch_id in ("batch_aa11", "batch_aa22", "batch_bbaa"):
        take_in(store, id=batch_id)
    with pytest.raises(AmbiguousBatch) as refused:
        catalog.find(store, "aa")
    for batch_id in ("batch_aa11", "batch_aa22", "batch_bbaa"):
        assert batch_id in refused.value.message


def test_a_whole_id_is_never_ambiguous(store: Store) -> None:
    short = take_in(store, id="batch_aa")
    take_in(store, id="batch_aa22")
    assert catalog.find(store, "batch_aa") == short


def test_the_newest_batches_come_first(store: Store) -> None:
    made = [take_in(store) for _ in range(4)]
    assert [batch.id for batch in catalog.recent(store, limit=3)] == [batch.id for batch in made[:0:-1]]
    done = complete(store, made[2])
    assert catalog.recent(store, limit=9, statuses=[BatchStatus.COMPLETED]) == [done]


def test_the_same_input_is_recognised(store: Store) -> None:
    first, other = take_in(store), take_in(store)
    assert catalog.same_input(store, input_sha256=first.input_sha256) == [first]
    assert catalog.same_input(store, input_sha256="unknown") == []
    assert other.input_sha256 != first.input_sha256


def test_paths_are_in_use_until_the_batch_has_ended(store: Store) -> None:
    batch = take_in(store, output_path="/a", error_path="/b")
    assert list(catalog.paths_in_use(store, paths=["/a", "/c"])) == ["/a"]
    assert catalog.paths_in_use(store, paths=["/b"])["/b"].id == batch.id
    complete(store, batch)
    assert catalog.paths_in_use(store, paths=["/a", "/b", "/out"]) == {}


def test_cancelling_stops_what_is_ready_and_what_runs(store: Store) -> None:
    batch = take_in(store, 600)
    who = worker(store)
    done, running = claim(store, who, chunks=2)
    queue.flush(store, worker=who, results=[*answers_to(done), *answers_to(running, running.requests[:3])])
    cancelled = finalization.request_cancel(store, pk=batch.pk)
    assert cancelled.status is BatchStatus.CANCELLING
    assert cancelled.cancelling_at is not None
    assert queue.flush(store, worker=who, results=answers_to(running)).rejected == {running.key}
    assert claim(store, who) == []
    assert [found.id for found in finalization.to_finalize(store, by="worker_x")] == [batch.id]
    assert finalization.request_cancel(store, pk=batch.pk) == cancelled
    entries = list(results.finished(store, pk=batch.pk))
    assert [entry.line for entry in entries] == list(range(1, 601))
    assert {code_of(entry) for entry in entries if entry.line > 259} == {"batch_cancelled"}
    assert {code_of(entry) for entry in entries if entry.line <= 259} == {None}
    assert finalization.start_finalizing(store, pk=batch.pk, by=who) is not None
    ended = finalization.finish(store, pk=batch.pk, by=who, output_path="/o", error_path="/e")
    assert (ended.status, ended.output_path, ended.error_path) == (BatchStatus.CANCELLED, "/o", "/e")
    assert ended.cancelled_at is not None
    assert ended.completed_at is None
    assert (ended.counts.completed, ended.counts.failed) == (259, 0)


def test_what_has_ended_cannot_be_cancelled(store: Store) -> None:
    batch = complete(store, take_in(store))
    with pytest.raises(WrongStatus):
        finalization.request_cancel(store, pk=batch.pk)
    assert catalog.find(store, batch.id) == batch


def test_a_batch_expires_at_its_deadline(store: Store) -> None:
    now = datetime.now(UTC)
    late = take_in(store, 600, expires_at=now + timedelta(hours=1))
    later = take_in(store, expires_at=now + timedelta(hours=3))
    never = take_in(store)
    who = worker(store)
    (running,) = claim(store, who)
    queue.flush(store, worker=who, results=answers_to(running, running.requests[:3]))
    assert finalization.expire(store, now=now) == []
    assert finalization.expire(store, now=now + timedelta(hours=2)) == [late.id]
    assert queue.flush(store, worker=who, results=answers_to(running)).recorded == 0
    codes = [code_of(entry) for entry in results.finished(store, pk=late.pk)]
    assert codes == [None] * 3 + ["batch_expired"] * 597
    assert finalization.start_finalizing(store, pk=late.pk, by=who) is not None
    ended = finalization.finish(store, pk=late.pk, by=who, output_path="/o", error_path="/e")
    assert ended.status is BatchStatus.EXPIRED
    assert ended.expired_at == now + timedelta(hours=2)
    assert {batch.id for batch in catalog.recent(store, limit=9, statuses=[BatchStatus.IN_PROGRESS])} == {
        later.id,
        never.id,
    }


def test_a_deadline_that_passes_after_the_last_answer_changes_nothing(store: Store) -> None:
    now = datetime.now(UTC)
    batch = take_in(store, 3, expires_at=now + timedelta(hours=1))
    work_off(store, batch)
    finalization.expire(store, now=now + timedelta(hours=2))
    assert finalization.start_finalizing(store, pk=batch.pk, by="w") is not None
    ended = finalization.finish(store, pk=batch.pk, by="w", output_path="/o", error_path="/e")
    assert ended.status is BatchStatus.COMPLETED


def test_one_worker_finalizes(store: Store) -> None:
    batch = take_in(store)
    work_off(store, batch)
    first, second = worker(store, pid=1), worker(store, pid=2)
    taken = finalization.start_finalizing(store, pk=batch.pk, by=first)
    assert taken is not None
    assert (taken.status, taken.finalizing_at is None) == (BatchStatus.FINALIZING, False)
    assert finalization.to_finalize(store, by="worker_x") == []
    assert finalization.start_finalizing(store, pk=batch.pk, by=second) is None
    assert finalization.start_finalizing(store, pk=batch.pk, by=first) == taken
    registry.stop(store, worker=first)
    assert [found.id for found in finalization.to_finalize(store, by="worker_x")] == [batch.id]
    assert finalization.start_finalizing(store, pk=batch.pk, by=second) == taken


def test_only_one_of_many_gets_it(store: Store) -> None:
    batch = take_in(store)
    work_off(store, batch)
    workers = [worker(store, pid=number) for number in range(2, 10)]
    ready = threading.Barrier(len(workers))

    def take(who: str) -> Batch | None:
        ready.wait()
        return finalization.start_finalizing(store, pk=batch.pk, by=who)

    with ThreadPoolExecutor(len(workers)) as pool:
        taken = list(pool.map(take, workers))
    assert sum(found is not None for found in taken) == 1


def test_an_unfinished_batch_is_not_finalized(store: Store) -> None:
    batch = take_in(store, 300)
    assert finalization.to_finalize(store, by="worker_x") == []
    assert finalization.start_finalizing(store, pk=batch.pk, by="w") is None
    claim(store, worker(store))
    assert finalization.start_finalizing(store, pk=batch.pk, by="w") is None


def test_finishing_twice_is_finishing_once(store: Store) -> None:
    done = complete(store, take_in(store))
    again = finalization.finish(store, pk=done.pk, by="test", output_path="/other", error_path="/other")
    assert again == done
    assert (done.status, done.output_path) == (BatchStatus.COMPLETED, "/out")
    assert done.completed_at is not None


def test_a_finalizer_that_was_replaced_cannot_finish(store: Store) -> None:
    batch = take_in(store)
    work_off(store, batch)
    slow, quick = worker(store, pid=1), worker(store, pid=2)
    finalization.start_finalizing(store, pk=batch.pk, by=slow)
    crashes.reclaim(store, worker=slow, heartbeat=None)
    finalization.start_finalizing(store, pk=batch.pk, by=quick)
    late = finalization.finish(store, pk=batch.pk, by=slow, output_path="/slow", error_path="/slow")
    assert late.status is BatchStatus.FINALIZING
    assert (
        finalization.finish(store, pk=batch.pk, by=quick, output_path="/q", error_path="/q").output_path
        == "/q"
    )


def test_every_operation_is_safe_to_replay(replaying: Store) -> None:
    batch = take_in(replaying, 5, expires_at=datetime.now(UTC) + timedelta(hours=1))
    cancelled = take_in(replaying, 5)
    finalization.request_cancel(replaying, pk=cancelled.pk)
    assert complete(replaying, batch).status is BatchStatus.COMPLETED
    assert complete(replaying, cancelled).status is BatchStatus.CANCELLED
    catalog.delete_batch(replaying, pk=batch.pk)
    assert [found.id for found in catalog.recent(replaying, limit=9)] == [cancelled.id]


def test_a_batch_that_ended_is_deleted_whole(store: Store) -> None:
    batch, other = take_in(store, 11_000), take_in(store, 3)
    work_off(store, batch)
    with pytest.raises(WrongStatus):
        catalog.delete_batch(store, pk=batch.pk)
    catalog.delete_batch(store, pk=complete(store, batch).pk)
    assert [count(store, table) for table in ("batch", "request", "result", "chunk")] == [1, 3, 3, 1]
    assert catalog.find(store, other.id).counts.completed == 3


def test_progress_is_of_all_unfinished_batches(store: Store) -> None:
    complete(store, take_in(store, 3))
    take_in(store, 600)
    take_in(store, 1)
    who = worker(store)
    (lease,) = claim(store, who)
    queue.flush(
        store,
        worker=who,
        results=answers_to(lease, lease.requests[:2]) + answers_to(lease, lease.requests[2:5], status=400),
    )
    progress = catalog.progress(store)
    assert (progress.unfinished_batches, progress.total, progress.completed, progress.failed) == (
        2,
        601,
        2,
        3,
    )


def test_progress_of_an_empty_store_is_nothing(store: Store) -> None:
    progress = catalog.progress(store)
    assert (progress.unfinished_batches, progress.total) == (0, 0)
