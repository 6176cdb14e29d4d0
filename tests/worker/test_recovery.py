"""When a worker is written off, by a clock that the test holds."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from tests.store.filling import worker
from vbatch import recovery
from vbatch.store import Store, registry
from vbatch.store.records import Worker


class Clock:
    """Monotonic time that passes when it is told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(recovery, "time", clock)
    return clock


@pytest.fixture
def other(store: Store) -> Worker:
    worker(store)
    (found,) = registry.live(store)
    return found


def looks(watch: recovery.Watch, clock: Clock, other: Worker, *, seconds: int) -> list[bool]:
    """Look each ten seconds."""
    seen = []
    for _ in range(0, seconds, 10):
        clock.now += 10
        seen.append(watch.lapsed(other))
    return seen


def test_a_beat_that_stands_still_for_a_lease_is_a_dead_workers(clock: Clock, other: Worker) -> None:
    watch = recovery.Watch(timedelta(seconds=90))
    assert looks(watch, clock, other, seconds=100) == [False] * 9 + [True]


def test_a_beat_that_rises_begins_a_new_lease(clock: Clock, other: Worker) -> None:
    watch = recovery.Watch(timedelta(seconds=90))
    looks(watch, clock, other, seconds=80)
    assert looks(watch, clock, replace(other, beat=other.beat + 1), seconds=90) == [False] * 9


def test_who_could_not_look_for_a_while_begins_anew(clock: Clock, other: Worker) -> None:
    """The store was away for an hour: nobody could beat. Mutant: Watch without ``last``."""
    watch = recovery.Watch(timedelta(seconds=90))
    looks(watch, clock, other, seconds=20)
    clock.now += 3600
    assert looks(watch, clock, other, seconds=90) == [False] * 9
    assert looks(watch, clock, other, seconds=10) == [True]
