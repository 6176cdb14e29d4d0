"""The poisonous request is found by halving, in at most log2(chunk) + 2 deaths, and no innocent is convicted."""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg
import pytest

from tests.rigs.waiting import until
from tests.store.filling import answers_to, claim, count, rows, take_in, worker
from vbatch.store import Store, answers, catalog, deaths, queue
from vbatch.store.records import ChunkKey, Lease
from vbatch.store.suspects import LOSSES, SPLIT_AT

FULL = 256  # requests in a full chunk


class Engine:
    """Runs leased chunks as a worker does: all at once, a suspect chunk alone. A poison kills it."""

    def __init__(self, store: Store, poisons: Collection[int], *, inflight: int = FULL) -> None:
        self.store = store
        self.poisons = set(poisons)
        self.inflight = inflight
        self.who = worker(store)
        self.deaths = 0

    def drain(self) -> None:
        """Work until nothing is left."""
        while leases := claim(self.store, self.who):
            (lease,) = leases
            self._run(lease)
        assert rows(self.store, "SELECT count(*) FROM chunk WHERE state IN ('ready', 'running')") == [(0,)]

    def _run(self, lease: Lease) -> None:
        pending = list(lease.requests)
        while pending:
            running, pending = pending[: self.inflight], pending[self.inflight :]
            if self.poisons & {request.line for request in running}:
                self.deaths += 1
                accused = {lease.key: [request.seq for request in running]}
                deaths.record_crash(self.store, worker=self.who, suspects_of=accused, cause="SIGSEGV")
                return
            queue.flush(self.store, worker=self.who, results=answers_to(lease, running))


def convicted(store: Store, pk: int) -> dict[int, str]:
    return {
        answer.line: answer.result.error_message or ""
        for answer in answers.finished(store, pk=pk)
        if answer.result is not None and answer.result.error_code == "engine_crash"
    }


@pytest.mark.parametrize("poison", [1, 2, 128, 129, 255, 256])
def test_one_poison_is_found_among_256_within_log2_plus_2_deaths(store: Store, poison: int) -> None:
    """Mutant: accusing without halving needs 256 deaths, or convicts innocents."""
    batch = take_in(store, FULL)
    engine = Engine(store, {poison})
    engine.drain()
    assert set(convicted(store, batch.pk)) == {poison}
    assert engine.deaths <= math.log2(FULL) + 2
    counts = catalog.find(store, batch.id).counts
    assert (counts.completed, counts.failed) == (FULL - 1, 1)
    assert len(list(answers.finished(store, pk=batch.pk))) == FULL


def test_the_verdict_holds_its_evidence(store: Store) -> None:
    batch = take_in(store, 1)
    engine = Engine(store, {1})
    engine.drain()
    assert engine.deaths == SPLIT_AT + 1, "it must have run alone as a suspect"
    assert "ran alone, after 2 deaths with its chunk in the engine" in convicted(store, batch.pk)[1]
    assert "SIGSEGV" in convicted(store, batch.pk)[1]


def test_the_last_request_of_a_chunk_is_not_convicted_for_being_the_last(store: Store) -> None:
    """Two deaths from outside: one under many, one when the longest request of the chunk was the only one left.

    Mutant: a conviction of who runs alone, though its chunk was no suspect when it was leased.
    """
    batch = take_in(store, 8)
    who = worker(store)
    (lease,) = claim(store, who)
    accused = {lease.key: [request.seq for request in lease.requests]}
    deaths.record_crash(store, worker=who, suspects_of=accused, cause="killed from outside")
    (lease,) = claim(store, who)
    queue.flush(store, worker=who, results=answers_to(lease, lease.requests[:-1]))
    alone = {lease.key: [lease.requests[-1].seq]}
    deaths.record_crash(store, worker=who, suspects_of=alone, cause="killed from outside")
    assert convicted(store, batch.pk) == {}
    (last,) = claim(store, who)
    queue.flush(store, worker=who, results=answers_to(last))
    counts = catalog.find(store, batch.id).counts
    assert (counts.completed, counts.failed) == (8, 0)


def split_in_two(store: Store) -> list[Lease]:
    """Leave two suspects of 4 requests each, and return them as they are claimed one after the other."""
    who = worker(store, pid=99)
    for _ in range(SPLIT_AT):
        (lease,) = claim(store, who)
        accused = {lease.key: [request.seq for request in lease.requests]}
        deaths.record_crash(store, worker=who, suspects_of=accused, cause="SIGSEGV")
    leases = []
    for _ in range(2):
        (lease,) = claim(store, who, chunks=9)
        leases.append(lease)
        queue.flush(store, worker=who, results=answers_to(lease))
    return leases


def test_a_suspect_is_leased_alone(store: Store) -> None:
    """Who holds two when it dies cannot tell which it was. Mutant: a claim that takes what there is."""
    take_in(store, 8)
    take_in(store, FULL)  # behind them
    first, second = split_in_two(store)
    assert (len(first.requests), len(second.requests)) == (4, 4)


def test_who_holds_a_suspect_gets_nothing_else(replaying: Store) -> None:
    """Nor when the answer to the claim was lost, and it is done again."""
    take_in(replaying, 8)
    assert [len(lease.requests) for lease in split_in_two(replaying)] == [4, 4]


def test_who_holds_something_gets_no_suspect(store: Store) -> None:
    """Mutant: a suspect for a worker whose engine is busy with others."""
    take_in(store, 2 * FULL)
    first, second = worker(store, pid=1), worker(store, pid=2)
    (kept,) = claim(store, first)
    for _ in range(SPLIT_AT):
        (lease,) = claim(store, second)
        accused = {lease.key: [request.seq for request in lease.requests]}
        deaths.record_crash(store, worker=second, suspects_of=accused, cause="SIGSEGV")
    assert claim(store, first, held=[kept.key]) == []
    queue.flush(store, worker=first, results=answers_to(kept))
    assert len(claim(store, first, chunks=2)) == 1


@pytest.mark.parametrize("seed", range(3))
def test_several_poisons_are_all_found_and_nobody_else(store: Store, seed: int) -> None:
    dice = random.Random(seed)
    poisons = set(dice.sample(range(1, 601), 4))
    batch = take_in(store, 600)
    engine = Engine(store, poisons, inflight=dice.choice([7, 64, FULL]))
    engine.drain()
    assert set(convicted(store, batch.pk)) == poisons
    counts = catalog.find(store, batch.id).counts
    assert (counts.total, counts.completed, counts.failed) == (600, 596, 4)
    lines = [answer.line for answer in answers.in_file_order(store, pk=batch.pk)]
    assert lines == list(range(1, 601))
    assert engine.deaths <= len(poisons) * (math.log2(FULL) + 2)


def test_one_death_accuses_nobody(store: Store) -> None:
    take_in(store, 3)
    who = worker(store)
    (lease,) = claim(store, who)
    deaths.record_crash(store, worker=who, suspects_of={lease.key: [0, 1, 2]}, cause="out of memory")
    assert rows(store, "SELECT state, crashes, total FROM chunk") == [("ready", 1, 3)]
    assert count(store, "result") == 0


def test_one_request_of_each_of_two_chunks_convicts_neither(store: Store) -> None:
    """Both were in the engine: being the only one of its chunk is not being alone."""
    batch = take_in(store, 512)
    who = worker(store)
    for _ in range(2):
        leases = claim(store, who, chunks=2)
        accused = {lease.key: [lease.requests[0].seq] for lease in leases}
        deaths.record_crash(store, worker=who, suspects_of=accused, cause="SIGSEGV")
    assert convicted(store, batch.pk) == {}
    assert count(store, "result") == 0


def test_what_was_not_in_the_engine_is_cleared(store: Store) -> None:
    take_in(store, 100)
    who = worker(store)
    for _ in range(2):
        (lease,) = claim(store, who)
        accused = [request.seq for request in lease.requests if 10 <= request.seq <= 13]
        deaths.record_crash(store, worker=who, suspects_of={lease.key: accused}, cause="SIGSEGV")
    assert rows(
        store,
        "SELECT first_seq, last_seq, crashes, total FROM chunk WHERE state = 'ready' ORDER BY first_seq",
    ) == [(0, 9, 0, 10), (10, 11, 2, 2), (12, 13, 2, 2), (14, 99, 0, 86)]


def test_a_crash_is_recorded_once_when_replayed(replaying: Store) -> None:
    batch = take_in(replaying, 8)
    engine = Engine(replaying, {3})
    engine.drain()
    assert set(convicted(replaying, batch.pk)) == {3}
    counts = catalog.find(replaying, batch.id).counts
    assert (counts.completed, counts.failed) == (7, 1)
    assert count(replaying, "result") == 8


def test_a_crash_over_a_chunk_that_is_not_ours_is_ignored(store: Store) -> None:
    take_in(store, 3)
    who = worker(store)
    (lease,) = claim(store, who)
    deaths.reclaim(store, worker=who, beat=None)
    deaths.record_crash(store, worker=who, suspects_of={lease.key: [0]}, cause="SIGSEGV")
    deaths.record_crash(store, worker=who, suspects_of={ChunkKey(99, 0): [0]}, cause="SIGSEGV")
    assert rows(store, "SELECT state, crashes FROM chunk") == [("ready", 0)]


def test_two_workers_that_split_chunks_of_one_batch_at_once_both_succeed(postgresql_url: str) -> None:
    """Both number the new chunks from the same last one, unless one waits for the other.

    Mutant: without the lock on the batch the second one's chunks have the numbers of the first one's
    (UniqueViolation), and its worker ends with an error that nobody can mend.
    """
    store = Store(postgresql_url)
    batch = take_in(store, 2 * FULL)
    whos = [worker(store, pid=number) for number in (1, 2)]

    def die(who: str, lease: Lease) -> None:
        accused = {lease.key: [request.seq for request in lease.requests]}
        deaths.record_crash(store, worker=who, suspects_of=accused, cause="SIGSEGV")

    for who, lease in [(who, claim(store, who)[0]) for who in whos]:
        die(who, lease)
    held = {who: claim(store, who)[0] for who in whos}  # their second death splits them
    with ThreadPoolExecutor() as threads, store.driver_connection() as referee:
        # Nobody may insert a chunk: both have looked which number is the last before either one goes on.
        referee.execute("LOCK TABLE chunk IN SHARE ROW EXCLUSIVE MODE")
        splitting = [threads.submit(die, who, lease) for who, lease in held.items()]
        until(lambda: _waiting_for_locks(referee) == len(whos))
        referee.commit()
        for done in splitting:
            done.result()
    pieces = rows(store, "SELECT first_seq, last_seq FROM chunk WHERE state = 'ready' ORDER BY first_seq")
    assert pieces == [(0, 127), (128, 255), (256, 383), (384, 511)]
    assert catalog.find(store, batch.id).counts.total == 2 * FULL
    store.close()


def _waiting_for_locks(connection: psycopg.Connection[Any]) -> int:
    row = connection.execute("SELECT count(DISTINCT pid) FROM pg_locks WHERE NOT granted").fetchone()
    assert row is not None
    return int(row[0])


def vanish(store: Store, number: int) -> Lease | None:
    """A worker takes what is first and dies with its whole process."""
    who = worker(store, pid=number)
    leases = claim(store, who)
    deaths.reclaim(store, worker=who, beat=None, vanished=True)
    return leases[0] if leases else None


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_request_that_kills_whole_workers_is_found(store: Store, chunks: int) -> None:
    """Its engine takes the worker down with it, so that nobody is left to say what was running.

    Mutant: workers that take several suspects at once; then nobody is ever the only one.
    """
    batch = take_in(store, 8)
    poison = 6
    for number in range(2, 200):
        who = worker(store, pid=number)
        leases = claim(store, who, chunks=chunks)
        if not leases:
            break
        if poison in {request.line for lease in leases for request in lease.requests}:
            deaths.reclaim(store, worker=who, beat=None, vanished=True)
        else:
            for lease in leases:
                queue.flush(store, worker=who, results=answers_to(lease))
            deaths.reclaim(store, worker=who, beat=None)
    assert set(convicted(store, batch.pk)) == {poison}
    counts = catalog.find(store, batch.id).counts
    assert (counts.completed, counts.failed) == (7, 1)


def test_a_worker_that_vanishes_once_or_twice_accuses_nobody(store: Store) -> None:
    take_in(store, 8)
    for number in range(2, 2 + LOSSES - 1):
        vanish(store, number)
    assert rows(store, "SELECT state, crashes, losses, total FROM chunk") == [("ready", 0, LOSSES - 1, 8)]


def test_after_the_third_time_the_halves_run_alone(store: Store) -> None:
    take_in(store, 8)
    for number in range(2, 2 + LOSSES):
        vanish(store, number)
    assert rows(
        store, "SELECT first_seq, last_seq, crashes FROM chunk WHERE state = 'ready' ORDER BY first_seq"
    ) == [(0, 3, SPLIT_AT), (4, 7, SPLIT_AT)]
