"""Whose chunk it is: flushes are fenced by the epoch, counted once, and chunks come back from whoever ends."""

from __future__ import annotations

from dataclasses import replace

from tests.rigs.filling import answer, answers_to, claim, count, rows, take_in, worker
from vbatch.store import Store, catalog, crashes, finalization, queue, registry, results
from vbatch.store.records import LeaseKey, Outcome, RequestCounts, Result


def counts(store: Store, batch_id: str) -> tuple[int, int]:
    found = catalog.find(store, batch_id).counts
    return found.completed, found.failed


def test_results_are_recorded_exactly(store: Store) -> None:
    batch = take_in(store, 3)
    who = worker(store)
    (lease,) = claim(store, who)
    good, bad, none = lease.requests
    late = [
        answer(lease, good),
        answer(lease, bad, status=400, text="\x00é🜚"),
        Result(
            key=lease.key,
            seq=none.seq,
            outcome=Outcome(error_code="request_timeout", error_message="too slow", attempts=3),
        ),
    ]
    flushed = queue.flush(store, worker=who, results=late)
    assert (flushed.recorded, flushed.rejected, flushed.finished) == (
        3,
        frozenset(),
        frozenset({lease.key}),
    )
    found = [entry.outcome for entry in results.in_file_order(store, pk=batch.pk)]
    assert found == [result.outcome for result in late]
    after = catalog.find(store, batch.id)
    assert after.counts == RequestCounts(total=3, completed=1, failed=2)
    assert (after.prompt_tokens, after.completion_tokens) == (4, 6)


def test_a_chunk_is_done_with_its_last_result(store: Store) -> None:
    batch = take_in(store, 4)
    who = worker(store)
    (lease,) = claim(store, who)
    first = queue.flush(store, worker=who, results=answers_to(lease, lease.requests[:3]))
    assert (first.recorded, first.finished) == (3, frozenset())
    assert finalization.to_finalize(store, by="worker_x") == []
    last = queue.flush(store, worker=who, results=answers_to(lease, lease.requests[3:]))
    assert (last.recorded, last.finished) == (1, frozenset({lease.key}))
    assert [found.id for found in finalization.to_finalize(store, by="worker_x")] == [batch.id]


def test_a_flush_of_nothing_does_nothing(store: Store) -> None:
    assert queue.flush(store, worker="nobody", results=[]).recorded == 0


def test_a_frozen_worker_writes_nothing(store: Store) -> None:
    """Frozen past its lease and thawed while another one works on its chunk.

    Mutant: a flush that does not compare the epoch records the first worker's answers.
    """
    batch = take_in(store, 2)
    frozen, other = worker(store, pid=1), worker(store, pid=2)
    (stale,) = claim(store, frozen)
    crashes.reclaim(store, worker=frozen, heartbeat=1)  # its claim was one
    (fresh,) = claim(store, other)
    flushed = queue.flush(store, worker=frozen, results=answers_to(stale, text="stale"))
    assert (flushed.recorded, flushed.rejected) == (0, frozenset({stale.key}))
    assert counts(store, batch.id) == (0, 0)
    assert queue.flush(store, worker=other, results=answers_to(fresh)).recorded == 2
    assert queue.flush(store, worker=frozen, results=answers_to(stale, text="stale")).recorded == 0
    bodies = {entry.outcome.body for entry in results.in_file_order(store, pk=batch.pk) if entry.outcome}
    assert bodies == {b'"1"', b'"2"'}


def test_a_frozen_worker_that_leases_its_chunk_again_is_fenced_from_its_own_past(store: Store) -> None:
    """State and name fit again; only the epoch distinguishes the old lease from the new one."""
    take_in(store, 2)
    who = worker(store)
    (stale,) = claim(store, who)
    crashes.reclaim(store, worker=who, heartbeat=None)
    (fresh,) = claim(store, who)
    assert fresh.key == stale.key._replace(epoch=2)
    assert queue.flush(store, worker=who, results=answers_to(stale)).rejected == {stale.key}
    assert count(store, "result") == 0


def test_answers_from_an_older_lease_are_dropped_beside_those_from_the_present_one(store: Store) -> None:
    batch = take_in(store, 2)
    who = worker(store)
    (stale,) = claim(store, who)
    queue.release(store, worker=who, keys=[stale.key])
    (fresh,) = claim(store, who)
    first, second = fresh.requests
    flushed = queue.flush(
        store, worker=who, results=[answer(stale, first, text="stale"), answer(fresh, second)]
    )
    assert (flushed.recorded, flushed.rejected) == (1, frozenset({stale.key}))
    assert [entry.line for entry in results.finished(store, pk=batch.pk)] == [2]


def test_a_rejected_chunk_does_not_stop_the_others(store: Store) -> None:
    take_in(store, 300)
    who, thief = worker(store, pid=1), worker(store, pid=2)
    mine, stolen = claim(store, who, chunks=2)
    queue.release(store, worker=who, keys=[stolen.key])
    claim(store, thief)
    flushed = queue.flush(store, worker=who, results=[*answers_to(stolen), *answers_to(mine)])
    assert (flushed.recorded, flushed.rejected) == (256, frozenset({stolen.key}))


def test_a_chunk_that_never_was_is_rejected(store: Store) -> None:
    take_in(store, 1)
    who = worker(store)
    (lease,) = claim(store, who)
    unknown = replace(answers_to(lease)[0], key=LeaseKey(lease.key.batch, 99, 1))
    assert queue.flush(store, worker=who, results=[unknown]).rejected == {unknown.key}


def test_a_replayed_flush_counts_once(replaying: Store) -> None:
    """Mutant: counts that rise by what was sent instead of by what was inserted."""
    batch = take_in(replaying, 5)
    who = worker(replaying)
    (lease,) = claim(replaying, who)
    queue.flush(replaying, worker=who, results=answers_to(lease, lease.requests[:2]))
    assert counts(replaying, batch.id) == (2, 0)
    flushed = queue.flush(replaying, worker=who, results=answers_to(lease, lease.requests[1:]))
    assert counts(replaying, batch.id) == (5, 0)
    assert (flushed.rejected, flushed.finished) == (frozenset(), frozenset({lease.key}))
    assert count(replaying, "result") == 5


def test_an_answer_is_recorded_once_and_never_changed(store: Store) -> None:
    batch = take_in(store, 2)
    who = worker(store)
    (lease,) = claim(store, who)
    first, _ = lease.requests
    queue.flush(store, worker=who, results=[answer(lease, first)])
    queue.flush(store, worker=who, results=[answer(lease, first, status=500, text="other")])
    found = next(iter(results.finished(store, pk=batch.pk))).outcome
    assert found is not None
    assert (found.status_code, found.body) == (200, b'"1"')
    assert counts(store, batch.id) == (1, 0)


def test_answers_that_were_cut_off_and_cached_tokens_are_counted_once(replaying: Store) -> None:
    """Mutant: counts of what was sent, not of what was recorded."""
    batch = take_in(replaying, 3)
    who = worker(replaying)
    (lease,) = claim(replaying, who)
    sent = [
        replace(one, outcome=one.outcome._replace(finish=finish, cached_tokens=5))
        for one, finish in zip(answers_to(lease), ("length", "stop", "length"), strict=True)
    ]
    queue.flush(replaying, worker=who, results=sent[:2])
    queue.flush(replaying, worker=who, results=sent)
    assert rows(replaying, "SELECT cut_off, cached_tokens FROM chunk") == [(2, 15)]
    assert rows(replaying, "SELECT finish FROM result ORDER BY seq") == [("length",), ("stop",), ("length",)]
    outcomes = [entry.outcome for entry in results.finished(replaying, pk=batch.pk)]
    assert [one.finish for one in outcomes if one is not None] == ["length", "stop", "length"]


def test_what_a_worker_holds_is_what_was_not_taken_away(store: Store) -> None:
    batch = take_in(store, 600)
    who = worker(store)
    leases = claim(store, who, chunks=3)
    assert queue.held_by(store, worker=who) == {lease.key for lease in leases}
    queue.release(store, worker=who, keys=[leases[0].key])
    claim(store, worker(store, pid=2))
    assert queue.held_by(store, worker=who) == {lease.key for lease in leases[1:]}
    finalization.request_cancel(store, pk=batch.pk)
    assert queue.held_by(store, worker=who) == frozenset()


def test_releasing_is_no_crash_and_no_loss(store: Store) -> None:
    take_in(store, 10)
    who = worker(store)
    (lease,) = claim(store, who)
    queue.flush(store, worker=who, results=answers_to(lease, lease.requests[:4]))
    assert queue.release(store, worker=who, keys=[lease.key]) == 1
    assert rows(store, "SELECT state, worker, engine_crashes, worker_crashes, completed FROM chunk") == [
        ("ready", None, 0, 0, 4)
    ]
    assert queue.release(store, worker=who, keys=[lease.key]) == 0


def test_a_worker_cannot_release_a_younger_lease_of_its_own_by_an_older_one(store: Store) -> None:
    """It lost the chunk and leased it again. Mutant: a release that asks for chunk and worker alone."""
    take_in(store, 10)
    who = worker(store)
    (stale,) = claim(store, who)
    crashes.reclaim(store, worker=who, heartbeat=None)
    (fresh,) = claim(store, who)
    assert queue.release(store, worker=who, keys=[stale.key]) == 0
    assert queue.held_by(store, worker=who) == {fresh.key}


def test_a_lease_of_a_chunk_that_was_lost_and_leased_again_is_found_though_its_answer_was_lost(
    store: Store,
) -> None:
    """The worker still believes in the old lease. Mutant: ``held`` that names chunks alone; this one then waits."""
    take_in(store, 2)
    who = worker(store)
    (stale,) = claim(store, who)
    crashes.reclaim(store, worker=who, heartbeat=None)
    (unheard,) = claim(store, who, held=[stale.key])
    (again,) = claim(store, who, held=[stale.key])
    assert again == unheard


def test_a_worker_cannot_release_what_another_one_holds(store: Store) -> None:
    take_in(store, 10)
    who = worker(store, pid=1)
    (lease,) = claim(store, who)
    assert queue.release(store, worker=worker(store, pid=2), keys=[lease.key]) == 0
    assert queue.held_by(store, worker=who) == {lease.key}


def test_a_dead_workers_chunks_come_back(store: Store) -> None:
    take_in(store, 600)
    dead, other = worker(store, pid=1), worker(store, pid=2)
    claim(store, dead, chunks=2)
    (kept,) = claim(store, other)
    assert crashes.reclaim(store, worker=dead, heartbeat=None) == 2
    assert [found.id for found in registry.live(store)] == [other]
    assert queue.held_by(store, worker=other) == {kept.key}
    assert {lease.key.number for lease in claim(store, other, chunks=9, held=[kept.key])} == {0, 1}


def test_a_heartbeat_since_then_protects_a_worker(store: Store) -> None:
    """It was slow, not dead: between the look and the reclaim it beat again."""
    take_in(store, 1)
    who = worker(store)
    claim(store, who)
    (seen,) = registry.live(store)
    registry.heartbeat(store, worker=who, models=["m"], note=None)
    assert crashes.reclaim(store, worker=who, heartbeat=seen.heartbeat) == 0
    assert [found.id for found in registry.live(store)] == [who]
    (seen,) = registry.live(store)
    assert crashes.reclaim(store, worker=who, heartbeat=seen.heartbeat) == 1


def test_reclaiming_twice_is_reclaiming_once(store: Store) -> None:
    take_in(store, 1)
    who = worker(store)
    claim(store, who)
    assert [crashes.reclaim(store, worker=who, heartbeat=None) for _ in range(2)] == [1, 0]
    assert rows(store, "SELECT state, worker_crashes FROM chunk") == [("ready", 0)]


def test_a_worker_that_held_nothing_is_only_written_off(store: Store) -> None:
    who = worker(store)
    assert crashes.reclaim(store, worker=who, heartbeat=None) == 0
    assert registry.live(store) == []


def test_only_vanishing_on_this_boot_counts_as_a_loss(store: Store) -> None:
    take_in(store, 300)
    first, second = worker(store, pid=1), worker(store, pid=2)
    claim(store, first)
    crashes.reclaim(store, worker=first, heartbeat=None, vanished=True)
    assert rows(store, "SELECT worker_crashes FROM chunk WHERE number = 0") == [(1,)]
    (lease,) = claim(store, second)
    queue.flush(store, worker=second, results=answers_to(lease, lease.requests[:1]))
    assert rows(store, "SELECT worker_crashes FROM chunk WHERE number = 0") == [
        (0,)
    ]  # it made progress in between
    crashes.reclaim(store, worker=second, heartbeat=None, vanished=False)
    assert rows(store, "SELECT worker_crashes FROM chunk WHERE number = 0") == [(0,)]


def test_the_store_tells_what_a_worker_holds(store: Store) -> None:
    take_in(store, 600)
    who, other = worker(store, pid=1), worker(store, pid=2)
    leases = claim(store, who, chunks=2)
    claim(store, other)
    assert queue.held_by(store, worker=who) == {lease.key for lease in leases}
    queue.release(store, worker=who, keys=[leases[0].key])
    assert queue.held_by(store, worker=who) == {leases[1].key}
