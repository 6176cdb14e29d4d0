"""Who gets which chunk: the order, each chunk to one worker, and nothing lost with a COMMIT's answer."""

from __future__ import annotations

import multiprocessing
from collections import Counter
from multiprocessing.connection import Connection

import pytest

from tests.rigs.filling import answers_to, claim, rows, take_in, worker
from vbatch.store import Store, crashes, queue, registry
from vbatch.store.records import LeaseKey
from vbatch.system import processes
from vbatch.system.processes import ProcessIdentity


def test_the_highest_priority_comes_first_then_the_oldest_batch(store: Store) -> None:
    old, urgent, new, lazy = (take_in(store, 300, priority=priority) for priority in (0, 5, 0, -5))
    who = worker(store)
    taken: list[LeaseKey] = []
    while leases := claim(store, who, held=taken):
        taken.append(leases[0].key)
    assert taken == [LeaseKey(batch.pk, n, 1) for batch in (urgent, old, new, lazy) for n in (0, 1)]


def test_several_chunks_are_leased_at_once_in_that_order(store: Store) -> None:
    batch, urgent = take_in(store, 600), take_in(store, 300, priority=1)
    leases = claim(store, worker(store), chunks=4)
    assert [lease.key for lease in leases] == [
        LeaseKey(pk, number, 1) for pk in (urgent.pk, batch.pk) for number in (0, 1)
    ]
    assert [len(lease.requests) for lease in leases] == [256, 44, 256, 256]
    assert {lease.key.epoch for lease in leases} == {1}


def test_only_work_for_the_loaded_model_is_leased(store: Store) -> None:
    batch = take_in(store, ["a", "b", "a", "b", "c"])
    who = worker(store)
    (lease,) = claim(store, who, model="b", chunks=10)
    assert [request.line for request in lease.requests] == [2, 4]
    assert (lease.model, lease.batch_id, lease.alone) == ("b", batch.id, False)
    assert claim(store, who, model="other") == []


def test_waiting_names_each_model_once_the_best_first(store: Store) -> None:
    first = take_in(store, ["b", "a"] * 300)
    urgent = take_in(store, ["c"], priority=9)
    second = take_in(store, ["a"], priority=3)
    assert [(entry.model, entry.priority, entry.batch) for entry in queue.waiting(store)] == [
        ("c", 9, urgent.pk),
        ("a", 3, second.pk),
        ("b", 0, first.pk),
    ]
    who = worker(store)
    while claim(
        store,
        who,
        model="b",
        held={LeaseKey(*row) for row in rows(store, "SELECT batch, number, epoch FROM chunk")},
    ):
        pass
    assert [entry.model for entry in queue.waiting(store)] == ["c", "a"]


def test_waiting_is_empty_without_work(store: Store) -> None:
    assert queue.waiting(store) == []


def test_a_chunk_is_leased_to_one_worker_only(store: Store) -> None:
    take_in(store, 256)
    assert len(claim(store, worker(store, pid=1))) == 1
    assert claim(store, worker(store, pid=2)) == []


def test_what_has_a_result_is_not_leased_again(store: Store) -> None:
    take_in(store, 10)
    who = worker(store)
    (lease,) = claim(store, who)
    queue.flush(store, worker=who, results=answers_to(lease, lease.requests[2:7]))
    queue.release(store, worker=who, keys=[lease.key])
    (again,) = claim(store, who)
    assert [request.line for request in again.requests] == [1, 2, 8, 9, 10]
    assert again.key.epoch == 2


def test_a_claim_whose_answer_was_lost_comes_back_as_a_stray(store: Store) -> None:
    """Mutant: without strays the chunk stays running with nobody working on it."""
    take_in(store, 600)
    who = worker(store)
    (lost,) = claim(store, who)  # the worker never heard of it
    stray, fresh = claim(store, who, chunks=2)
    assert (stray.key, stray.requests) == (lost.key, lost.requests)
    assert fresh.key == LeaseKey(lost.key.batch, 1, 1)
    assert [lease.key.number for lease in claim(store, who, chunks=2, held=[stray.key, fresh.key])] == [2]


def test_a_replayed_claim_leases_no_more_than_was_asked_for(replaying: Store) -> None:
    take_in(replaying, 1000)
    leases = claim(replaying, worker(replaying), chunks=2)
    assert [(lease.key.number, lease.key.epoch) for lease in leases] == [(0, 1), (1, 1)]
    assert rows(replaying, "SELECT count(*) FROM chunk WHERE state = 'running'") == [(2,)]


def test_strays_of_another_model_are_left_until_it_is_loaded(store: Store) -> None:
    take_in(store, ["a", "b"])
    who = worker(store)
    claim(store, who, model="a")
    assert [lease.model for lease in claim(store, who, model="b", chunks=9)] == ["b"]
    assert [lease.model for lease in claim(store, who, model="a")] == ["a"]


def test_a_worker_that_was_thought_dead_counts_as_alive_once_it_claims(store: Store) -> None:
    """Thawed after its lease it goes on; when it then dies, its new chunks must be found.

    Mutant: ``claim`` that does not look at the worker's own row leaves them running for ever.
    """
    take_in(store, 600)
    who = worker(store)
    claim(store, who)
    (seen,) = registry.live(store)
    crashes.reclaim(store, worker=who, heartbeat=seen.heartbeat)
    assert registry.live(store) == []
    assert len(claim(store, who)) == 1
    assert [found.id for found in registry.live(store)] == [who]
    assert crashes.reclaim(store, worker=who, heartbeat=None) == 1


def _claim_all(url: str, start: Connection, found: Connection) -> None:
    store = Store(url)
    me = registry.register(store, identity=processes.current(), engine="echo")
    start.recv()
    keys: list[LeaseKey] = []
    while leases := queue.claim(store, worker=me, models=["m"], chunks=2, held=frozenset(keys)):
        keys += [lease.key for lease in leases]
    found.send((me, keys))


@pytest.mark.parametrize("workers", [4])
def test_many_processes_claim_each_chunk_once(store: Store, workers: int) -> None:
    """On SQLite a claim that begins with a read and then writes would fail here, or claim twice."""
    take_in(store, ["m"] * 256 * 60)
    context = multiprocessing.get_context("spawn")
    url = store.url.render_as_string(hide_password=False)
    starts, founds, running = [], [], []
    for _ in range(workers):
        start, its_start = context.Pipe()
        its_found, found = context.Pipe()
        process = context.Process(target=_claim_all, args=(url, its_start, found), daemon=True)
        process.start()
        starts.append(start)
        founds.append(its_found)
        running.append(process)
    for start in starts:
        start.send(None)
    claims = dict(found.recv() for found in founds)
    for process in running:
        process.join()
    assert Counter(key for keys in claims.values() for key in keys).most_common(1)[0][1] == 1
    assert sum(map(len, claims.values())) == 60
    assert rows(store, "SELECT DISTINCT state, epoch FROM chunk") == [("running", 1)]
    for me, keys in claims.items():
        assert {
            LeaseKey(*row)
            for row in rows(store, "SELECT batch, number, epoch FROM chunk WHERE worker = :me", me=me)
        } == set(keys)


def test_two_workers_of_one_machine_are_two(store: Store) -> None:
    identities = [
        ProcessIdentity(host="here", boot_id="boot", pid_namespace=1, pid=9, start_ticks=ticks)
        for ticks in (1, 2)
    ]
    assert len({worker(store, identity=identity) for identity in identities}) == 2
