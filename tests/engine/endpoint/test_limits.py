"""The adaptive limit against simulated servers: time is the simulation's, so that no machine is too slow."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from itertools import pairwise

import pytest

from vbatch.engine.endpoint.limits import Limit, Sent


def simulate(
    server: Callable[[int, float], float | None], *, seconds: float, ceiling: int | None = None
) -> tuple[Limit, list[tuple[float, int]]]:
    """Keep a server busy, up to the limit; return the limit and its values by time.

    ``server`` returns how long an answer takes with so many at once, None where it refuses.
    """
    now, running = 0.0, 0
    limit = Limit(ceiling=ceiling, clock=lambda: now)
    events: list[tuple[float, int, Sent, bool]] = []
    values: list[tuple[float, int]] = []
    number, paused = 0, 0.0
    while now < seconds:
        while limit.free > 0 and now >= paused:
            took = server(running, now)
            number += 1
            end = now + (took if took is not None else 0.001)
            heapq.heappush(events, (end, number, limit.send(), took is not None))
            running += took is not None
        if not events:
            now = paused
            continue
        now, _, sent, good = heapq.heappop(events)
        limit.end()
        running -= good
        if good:
            limit.answered(sent, 10)
        elif limit.refused(sent, full=True):
            paused = now + 0.25
        values.append((now, limit.value))
    return limit, values


def held(values: list[tuple[float, int]], *, since: float) -> float:
    """Return the mean of the limit over the time since then."""
    total = span = 0.0
    for (start, value), (end, _) in pairwise(values):
        if start >= since:
            total, span = total + value * (end - start), span + end - start
    return total / span


@pytest.mark.parametrize("capacity", [8, 24, 12, 100])
def test_the_limit_stays_near_what_a_server_takes(capacity: int) -> None:
    """It refuses more. Mutants: without the memory of what was taken, a saw; with no further tries, 8 for all."""
    dice = random.Random(1)

    def server(running: int, _now: float) -> float | None:
        return dice.uniform(0.5, 1.5) if running < capacity else None

    _, values = simulate(server, seconds=300)
    assert held(values, since=60) == pytest.approx(capacity, rel=0.15)


@pytest.mark.parametrize("capacity", [8, 32])
def test_a_server_that_queues_is_not_given_more_than_makes_it_faster(capacity: int) -> None:
    """It refuses nothing, and is no faster above its capacity. Mutant: growth without a look at the speed: 256."""
    dice = random.Random(2)

    def server(running: int, _now: float) -> float:
        return dice.uniform(0.9, 1.1) * max(1.0, (running + 1) / capacity)

    _, values = simulate(server, seconds=600)
    assert capacity * 0.75 <= held(values, since=100) <= capacity * 2


def test_the_limit_follows_a_server_that_changes() -> None:
    """From 30 to 10 and back. Mutant: one that never tries again what was refused once."""
    dice = random.Random(3)

    def server(running: int, now: float) -> float | None:
        capacity = 10 if 200 < now < 400 else 30
        return dice.uniform(0.5, 1.5) if running < capacity else None

    _, values = simulate(server, seconds=900)
    assert held([each for each in values if each[0] < 400], since=250) == pytest.approx(10, rel=0.25)
    assert held(values, since=700) == pytest.approx(30, rel=0.25)


def test_an_outage_does_not_unlearn_what_a_server_takes() -> None:
    """It refuses everything for a minute. Mutant: what is refused then as what it takes: 1, for minutes."""
    dice = random.Random(4)

    def server(running: int, now: float) -> float | None:
        return None if 100 < now < 160 or running >= 24 else dice.uniform(0.5, 1.5)

    _, values = simulate(server, seconds=240)
    assert held(values, since=180) >= 12


def test_refusals_at_random_do_not_bring_it_down_to_one() -> None:
    """One of 50 requests, as of a hosted API. Mutant: its place as what the server takes."""
    dice = random.Random(5)

    def server(running: int, _now: float) -> float | None:
        return None if running >= 24 or dice.random() < 0.02 else dice.uniform(0.5, 1.5)

    _, values = simulate(server, seconds=300)
    assert held(values, since=60) >= 8


def test_it_halves_once_for_all_that_was_sent_before() -> None:
    """Mutant: a limit that halves for each of 16 refused answers."""
    limit = Limit(clock=iter(range(1000)).__next__)
    for _ in range(16):
        limit.answered(Sent(1, 0))
    value = limit.value
    sent = [limit.send() for _ in range(value)]
    assert [limit.refused(each, full=False) for each in sent] == [True] + [False] * (value - 1)
    assert limit.value == value // 2


def test_a_ceiling_holds() -> None:
    """Mutant: ``max_inflight`` of an endpoint as a start alone."""
    limit, values = simulate(lambda _running, _now: 1.0, seconds=100, ceiling=12)
    assert max(value for _, value in values) == 12
    assert limit.value >= 10
