"""When a worker is written off, by a clock that the test holds, and what its end says about its request."""

from __future__ import annotations

import threading
from dataclasses import replace
from datetime import timedelta
from itertools import count as counting

import pytest

from tests.rigs import engines
from tests.rigs.clock import Clock
from tests.rigs.filling import claim, count, rows, take_in, worker
from vbatch.recovery import dead_workers
from vbatch.store import Store, registry
from vbatch.store.records import Worker
from vbatch.store.suspects import UNCOMPARED_WORKER_CRASHES
from vbatch.system import ending, processes


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(dead_workers, "time", clock)
    return clock


@pytest.fixture
def other(store: Store) -> Worker:
    worker(store)
    (found,) = registry.live(store)
    return found


def looks(watch: dead_workers.Watch, clock: Clock, other: Worker, *, seconds: int) -> list[bool]:
    """Look each ten seconds."""
    seen = []
    for _ in range(0, seconds, 10):
        clock.now += 10
        seen.append(watch.lapsed(other))
    return seen


def test_a_beat_that_stands_still_for_a_lease_is_a_dead_workers(clock: Clock, other: Worker) -> None:
    watch = dead_workers.Watch(timedelta(seconds=90))
    assert looks(watch, clock, other, seconds=100) == [False] * 9 + [True]


def test_a_beat_that_rises_begins_a_new_lease(clock: Clock, other: Worker) -> None:
    watch = dead_workers.Watch(timedelta(seconds=90))
    looks(watch, clock, other, seconds=80)
    assert looks(watch, clock, replace(other, heartbeat=other.heartbeat + 1), seconds=90) == [False] * 9


def test_who_could_not_look_for_a_while_begins_anew(clock: Clock, other: Worker) -> None:
    """The store was unreachable for an hour: no worker could beat. Mutant: Watch without ``last``."""
    watch = dead_workers.Watch(timedelta(seconds=90))
    looks(watch, clock, other, seconds=20)
    clock.now += 3600
    assert looks(watch, clock, other, seconds=90) == [False] * 9
    assert looks(watch, clock, other, seconds=10) == [True]


START_TICKS = counting(1)


def dead(store: Store) -> str:
    """Register a worker of this boot whose process is gone."""
    return worker(store, identity=replace(processes.current(), start_ticks=next(START_TICKS)))


@pytest.fixture
def accused(store: Store) -> str:
    """A lone request that was nine times the only one of a worker that died; a tenth dead one holds it."""
    take_in(store, 1)
    for number in range(UNCOMPARED_WORKER_CRASHES):
        who = dead(store)
        claim(store, who)
        if number < UNCOMPARED_WORKER_CRASHES - 1:
            dead_workers.release_chunks(store)
    return who


def test_one_that_died_alone_has_its_request_blamed(store: Store, accused: str) -> None:
    """Mutant: ``together`` is always so."""
    with engines.child() as process:  # another worker, which lives
        worker(store, identity=process.identity)
        assert dead_workers.release_chunks(store) == 1
    assert rows(store, "SELECT error_code FROM result") == [("engine_crash",)]


def test_two_that_died_in_one_moment_have_no_request_blamed(store: Store, accused: str) -> None:
    """Mutant: ``release_chunks`` that does not ask whether there are several."""
    dead(store)
    dead_workers.release_chunks(store)
    assert rows(store, "SELECT state, worker_crashes FROM chunk") == [("ready", 0)]


def test_one_that_dies_a_moment_later_is_seen(store: Store, accused: str) -> None:
    """Its process ends while the first one is looked at. Mutant: no second look before a request is blamed."""
    with engines.child() as process:
        worker(store, identity=process.identity)
        timer = threading.Timer(1, lambda: ending.end(process.identity, grace=timedelta(0)))
        timer.start()
        dead_workers.release_chunks(store)
        timer.join()
    assert rows(store, "SELECT state, worker_crashes FROM chunk") == [("ready", 0)]


def test_a_signal_to_another_worker_in_those_seconds_acquits(store: Store, accused: str) -> None:
    """A person ends them all; one had no time to obey. Mutant: no look for signals before a request is blamed."""
    with engines.child() as process:
        registry.stopping(store, worker=worker(store, identity=process.identity))
        dead_workers.release_chunks(store)
    assert rows(store, "SELECT state, worker_crashes FROM chunk") == [("ready", 0)]


def test_workers_of_an_earlier_boot_are_no_others(store: Store, accused: str) -> None:
    """They died with their machine. Mutant: counting all that are gone."""
    worker(store, identity=replace(processes.current(), boot_id="an-earlier-boot"))
    dead_workers.release_chunks(store)
    assert count(store, "result") == 1
