"""The poisonous request is found by halving, in at most log2(chunk) + 2 deaths, and no innocent is convicted."""

from __future__ import annotations

import math
import random
from collections.abc import Collection
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import count as counting
from typing import Any

import psycopg
import pytest

from tests.rigs.filling import NOBODY, answers_to, claim, count, rows, take_in, worker
from tests.rigs.waiting import until
from vbatch.store import Store, catalog, crashes, queue, registry, results
from vbatch.store.records import SPLIT_AT, Batch, Lease, LeaseKey
from vbatch.store.suspects import UNCOMPARED_WORKER_CRASHES, WORKER_CRASHES

FULL = 256  # requests in a full chunk
PIDS = counting(1000)


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
                crashes.record_engine_crash(self.store, worker=self.who, suspects_of=accused, cause="SIGSEGV")
                return
            queue.flush(self.store, worker=self.who, results=answers_to(lease, running))


def convicted(store: Store, pk: int) -> dict[int, str]:
    return {
        answer.line: answer.outcome.error_message or ""
        for answer in results.finished(store, pk=pk)
        if answer.outcome is not None and answer.outcome.error_code == "engine_crash"
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
    assert len(list(results.finished(store, pk=batch.pk))) == FULL


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
    crashes.record_engine_crash(store, worker=who, suspects_of=accused, cause="killed from outside")
    (lease,) = claim(store, who)
    queue.flush(store, worker=who, results=answers_to(lease, lease.requests[:-1]))
    alone = {lease.key: [lease.requests[-1].seq]}
    crashes.record_engine_crash(store, worker=who, suspects_of=alone, cause="killed from outside")
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
        crashes.record_engine_crash(store, worker=who, suspects_of=accused, cause="SIGSEGV")
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
        crashes.record_engine_crash(store, worker=second, suspects_of=accused, cause="SIGSEGV")
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
    lines = [answer.line for answer in results.in_file_order(store, pk=batch.pk)]
    assert lines == list(range(1, 601))
    assert engine.deaths <= len(poisons) * (math.log2(FULL) + 2)


def test_one_death_accuses_nobody(store: Store) -> None:
    take_in(store, 3)
    who = worker(store)
    (lease,) = claim(store, who)
    crashes.record_engine_crash(store, worker=who, suspects_of={lease.key: [0, 1, 2]}, cause="out of memory")
    assert rows(store, "SELECT state, engine_crashes, total FROM chunk") == [("ready", 1, 3)]
    assert count(store, "result") == 0


def test_one_request_of_each_of_two_chunks_convicts_neither(store: Store) -> None:
    """Both were in the engine: being the only one of its chunk is not being alone."""
    batch = take_in(store, 512)
    who = worker(store)
    for _ in range(2):
        leases = claim(store, who, chunks=2)
        accused = {lease.key: [lease.requests[0].seq] for lease in leases}
        crashes.record_engine_crash(store, worker=who, suspects_of=accused, cause="SIGSEGV")
    assert convicted(store, batch.pk) == {}
    assert count(store, "result") == 0


def test_what_was_not_in_the_engine_is_cleared(store: Store) -> None:
    take_in(store, 100)
    who = worker(store)
    for _ in range(2):
        (lease,) = claim(store, who)
        accused = [request.seq for request in lease.requests if 10 <= request.seq <= 13]
        crashes.record_engine_crash(store, worker=who, suspects_of={lease.key: accused}, cause="SIGSEGV")
    assert rows(
        store,
        "SELECT first_seq, last_seq, engine_crashes, total FROM chunk WHERE state = 'ready' ORDER BY first_seq",
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
    crashes.reclaim(store, worker=who, heartbeat=None)
    crashes.record_engine_crash(store, worker=who, suspects_of={lease.key: [0]}, cause="SIGSEGV")
    crashes.record_engine_crash(store, worker=who, suspects_of={LeaseKey(99, 0, 1): [0]}, cause="SIGSEGV")
    assert rows(store, "SELECT state, engine_crashes FROM chunk") == [("ready", 0)]


def test_two_workers_that_split_chunks_of_one_batch_at_once_both_succeed(postgresql_url: str) -> None:
    """Both number the new chunks from the same last one, unless one waits for the other.

    Mutant: without the lock on the batch the second one's chunks have the numbers of the first one's
    (UniqueViolation), and its worker ends with an error that nobody can mend.
    """
    store = Store(postgresql_url)
    batch = take_in(store, 2 * FULL)
    whos = [worker(store, pid=number) for number in (1, 2)]

    def crash(who: str, lease: Lease) -> None:
        accused = {lease.key: [request.seq for request in lease.requests]}
        crashes.record_engine_crash(store, worker=who, suspects_of=accused, cause="SIGSEGV")

    for who, lease in [(who, claim(store, who)[0]) for who in whos]:
        crash(who, lease)
    held = {who: claim(store, who)[0] for who in whos}  # their second death splits them
    with ThreadPoolExecutor() as threads, psycopg.connect(postgresql_url) as referee:
        # Nobody may insert a chunk: both have looked which number is the last before either one goes on.
        referee.execute("LOCK TABLE chunk IN SHARE ROW EXCLUSIVE MODE")
        splitting = [threads.submit(crash, who, lease) for who, lease in held.items()]
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


def die(store: Store, **how: bool) -> Lease:
    """A worker takes what comes first and dies with its whole process."""
    who = worker(store, pid=next(PIDS))
    (lease,) = claim(store, who)
    crashes.reclaim(store, worker=who, heartbeat=None, **{"vanished": True, **how})
    return lease


def answer_one(store: Store) -> Lease:
    """A worker takes what comes first and answers it."""
    who = worker(store, pid=next(PIDS))
    (lease,) = claim(store, who)
    queue.flush(store, worker=who, results=answers_to(lease))
    crashes.reclaim(store, worker=who, heartbeat=None)
    return lease


def losses(store: Store) -> list[int]:
    return [
        found
        for (found,) in rows(
            store, "SELECT worker_crashes FROM chunk WHERE state = 'ready' ORDER BY batch, number"
        )
    ]


def killers(store: Store, batch: Batch, poison: int, *, chunks: int = 1) -> int:
    """Have worker after worker work until the queue is empty; return how many the poisonous line killed."""
    killed = 0
    for _ in range(200):
        who = worker(store, pid=next(PIDS))
        leases = claim(store, who, chunks=chunks)
        if not leases:
            return killed
        dies = any(
            lease.key.batch == batch.pk and poison in {request.line for request in lease.requests}
            for lease in leases
        )
        if not dies:
            for lease in leases:
                queue.flush(store, worker=who, results=answers_to(lease))
        killed += dies
        crashes.reclaim(store, worker=who, heartbeat=None, vanished=dies)
    raise AssertionError("the queue is never empty")


@pytest.mark.parametrize("chunks", [1, 3])
def test_a_request_that_kills_whole_workers_is_found(store: Store, chunks: int) -> None:
    """Its engine takes the worker down with it, so that nothing is left to report what was running.

    Three deaths for each halving of 8 (8, 4, 2), and three over the request alone: others wait to compare it with.
    Mutants: workers that take several suspects at once; then none is ever the only one. A claim without controls;
    it then takes seven deaths more.
    """
    batch, _ = take_in(store, 8), take_in(store, 300)
    assert killers(store, batch, 6, chunks=chunks) == 3 * WORKER_CRASHES + WORKER_CRASHES
    assert set(convicted(store, batch.pk)) == {6}
    assert (
        "other requests ran alone to their end on the same machine (2 times)" in convicted(store, batch.pk)[6]
    )
    assert rows(store, "SELECT sum(completed), sum(failed) FROM chunk") == [(307, 1)]
    assert count(store, "result") == 308


def test_the_last_one_is_found_though_nothing_is_left_to_compare_it_with(store: Store) -> None:
    """Mutant: a conviction only by comparison; the queue is then never empty."""
    batch = take_in(store, 8)
    assert killers(store, batch, 8) == 3 * WORKER_CRASHES + UNCOMPARED_WORKER_CRASHES
    assert set(convicted(store, batch.pk)) == {8}
    assert "died 10 times in a row while this request ran alone" in convicted(store, batch.pk)[8]
    assert "no other request to compare it with" in convicted(store, batch.pk)[8]


def test_two_that_kill_workers_are_both_found(store: Store) -> None:
    """They stand for each other as controls, and neither ends."""
    batch = take_in(store, 2)
    for _ in range(100):
        who = worker(store, pid=next(PIDS))
        if not claim(store, who):
            break
        crashes.reclaim(store, worker=who, heartbeat=None, vanished=True)
    assert set(convicted(store, batch.pk)) == {1, 2}


def test_nine_deaths_of_its_worker_convict_no_request_that_is_alone_in_the_queue(store: Store) -> None:
    """Mutant: a conviction at the third death, as if it had been compared with another one."""
    batch = take_in(store, 1)
    for number in range(1, 10):
        die(store)
        assert losses(store) == [number]
    assert convicted(store, batch.pk) == {}
    die(store)
    assert set(convicted(store, batch.pk)) == {1}


def test_three_deaths_and_a_control_between_them_convict(replaying: Store) -> None:
    """Mutants: ``ended`` that counts nothing; one that counts what ran beside others, or a replay twice."""
    batch = take_in(replaying, 1)
    take_in(replaying, 3)
    assert die(replaying).requests[0].line == 1
    for number in (1, 2):
        control = answer_one(replaying)
        assert (control.alone, len(control.requests), control.key.batch != batch.pk) == (True, 1, True)
        assert rows(replaying, "SELECT comparisons FROM chunk WHERE batch = :pk", pk=batch.pk) == [(number,)]
        assert convicted(replaying, batch.pk) == {}
        assert die(replaying).key.batch == batch.pk
    assert set(convicted(replaying, batch.pk)) == {1}
    (rest,) = claim(replaying, worker(replaying, pid=next(PIDS)), chunks=9)
    assert (rest.alone, [request.line for request in rest.requests]) == (False, [3])


def test_a_control_is_one_request_of_those_that_wait(store: Store) -> None:
    """The rest of its chunk is worked on later. Mutant: a control that runs with its whole chunk."""
    take_in(store, 1)
    other = take_in(store, 6, priority=-1)
    first = worker(store, pid=next(PIDS))
    (held,) = claim(store, worker(store, pid=next(PIDS)))
    (lease,) = claim(store, first)
    queue.flush(store, worker=first, results=answers_to(lease, [lease.requests[0], lease.requests[3]]))
    queue.release(store, worker=first, keys=[lease.key])
    crashes.reclaim(store, worker=holder(store, held), heartbeat=None, vanished=True)
    assert [request.line for request in answer_one(store).requests] == [2]
    answer_one(store)
    (rest,) = claim(store, first)
    assert ([request.line for request in rest.requests], rest.alone) == ([3, 5, 6], False)
    counts = catalog.find(store, other.id).counts
    assert (counts.total, counts.completed) == (6, 3)


def holder(store: Store, lease: Lease) -> str:
    query = "SELECT worker FROM chunk WHERE batch = :batch AND number = :number"
    return str(rows(store, query, batch=lease.key.batch, number=lease.key.number)[0][0])


def test_a_control_whose_worker_dies_is_blamed_for_nothing_by_that_alone(store: Store) -> None:
    """Workers are killed from outside, whatever they run. Mutant: a control that is the same request each time."""
    take_in(store, 1)
    take_in(store, 20)
    assert len({die(store).key for _ in range(20)}) == 20
    assert count(store, "result") == 0


def test_only_a_request_of_the_same_boot_is_a_control(store: Store) -> None:
    """On another machine there is nothing to compare, so that the suspect comes at once.

    Mutant: ``first`` that does not ask for the boot; one request after the other then runs alone.
    """
    batch = take_in(store, 1)
    take_in(store, 300)
    die(store)
    elsewhere = worker(store, identity=replace(NOBODY, pid=next(PIDS)))
    (lease,) = claim(store, elsewhere)
    assert lease.key.batch == batch.pk
    queue.release(store, worker=elsewhere, keys=[lease.key])


def test_another_boot_sets_the_count_back(store: Store) -> None:
    """The machine froze over and over: each time it was started again. Mutant: ``lost`` that does not compare boots."""
    batch = take_in(store, 1)
    for number in range(30):
        boot = replace(NOBODY, boot_id=f"boot-{number // 5}", pid=next(PIDS))
        who = worker(store, identity=boot)
        claim(store, who)
        crashes.reclaim(store, worker=who, heartbeat=None, vanished=True)
        assert losses(store) == [number % 5 + 1]
    assert convicted(store, batch.pk) == {}


@pytest.mark.parametrize("cause", ["signal", "together", "lease", "release", "stop"])
def test_what_is_no_fault_of_a_request_sets_its_count_back(store: Store, cause: str) -> None:
    """Mutants: ``reclaim`` that does not ask for a signal; one for which others that died change nothing;
    ``release`` and ``registry.stop`` that leave the count."""
    batch = take_in(store, 1)
    for _ in range(4):
        for _ in range(WORKER_CRASHES):
            die(store)
        assert losses(store) == [WORKER_CRASHES]
        who = worker(store, pid=next(PIDS))
        (lease,) = claim(store, who)
        match cause:
            case "signal":
                registry.stopping(store, worker=who)
                crashes.reclaim(store, worker=who, heartbeat=None, vanished=True)
            case "together":
                crashes.reclaim(store, worker=who, heartbeat=None, vanished=True, together=True)
            case "lease":
                crashes.reclaim(store, worker=who, heartbeat=None)
            case "release":
                queue.release(store, worker=who, keys=[lease.key])
            case "stop":
                registry.stop(store, worker=who)
        assert losses(store) == [0]
    assert convicted(store, batch.pk) == {}


def test_deaths_beside_others_do_not_count_against_one_that_runs_alone(store: Store) -> None:
    """Its worker held another chunk, too. Mutant: ``lost`` that counts on."""
    take_in(store, 1)
    take_in(store, 1)
    for _ in range(2):
        who = worker(store, pid=next(PIDS))
        claim(store, who, chunks=2)
        crashes.reclaim(store, worker=who, heartbeat=None, vanished=True)
    assert losses(store) == [2, 2]
    die(store)
    assert losses(store) == [1, 2]


def test_engine_deaths_of_one_that_killed_workers_are_counted_by_themselves(store: Store) -> None:
    """Mutant: halves of a chunk that lost its workers count as suspects of two engine deaths."""
    batch = take_in(store, 1)
    for _ in range(WORKER_CRASHES):
        die(store)
    who = worker(store, pid=next(PIDS))
    for _ in range(SPLIT_AT):
        (lease,) = claim(store, who)
        crashes.record_engine_crash(store, worker=who, suspects_of={lease.key: [0]}, cause="the OOM killer")
    assert convicted(store, batch.pk) == {}


def test_a_worker_that_vanishes_once_or_twice_accuses_nobody(store: Store) -> None:
    take_in(store, 8)
    for _ in range(WORKER_CRASHES - 1):
        die(store)
    assert rows(store, "SELECT state, alone, worker_crashes, total FROM chunk") == [
        ("ready", 0, WORKER_CRASHES - 1, 8)
    ]


def test_after_the_third_time_the_halves_run_alone(store: Store) -> None:
    take_in(store, 8)
    for _ in range(WORKER_CRASHES):
        die(store)
    assert rows(
        store,
        "SELECT first_seq, last_seq, alone, engine_crashes FROM chunk WHERE state = 'ready' ORDER BY first_seq",
    ) == [(0, 3, 1, 0), (4, 7, 1, 0)]
