"""How long one server is left alone, by a clock of the test's own."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from vbatch.config.endpoints import EndpointSettings
from vbatch.engine.endpoint.client import Client
from vbatch.engine.endpoint.place import FIRST_BLOCK, FIRST_PAUSE, LONGEST_OWN_PAUSE, Place
from vbatch.engine.endpoint.rules import LONGEST_PAUSE, Closed, Scope

URL = "http://127.0.0.1:9"
CHAT = "/v1/chat/completions"


@dataclass
class Clock:
    """Seconds, that pass when the test says so."""

    now: float = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def place(clock: Clock) -> Iterator[Place]:
    """A server that has the model ``m``, and takes requests."""
    with asyncio.Runner() as runner:

        async def new() -> Place:
            return Place("s", EndpointSettings.model_validate({"url": URL}), Client(URL, None), clock=clock)

        made = runner.run(new())
        made.found(frozenset({"m", "n"}))
        yield made
        runner.run(made.client.close())


def refused(place: Place, clock: Clock, pause: float | None) -> float:
    """Have it refuse one request, a second after it was sent; return for how many seconds it is left alone."""
    sent = place.limit.send()
    clock.now += 1
    place.limit.end()
    return place.full(sent, pause)


def answered(place: Place) -> None:
    sent = place.limit.send()
    place.limit.end()
    place.succeeded(sent, "m", CHAT, 1)


def test_a_full_server_gets_nothing_until_its_time_is_over(place: Place, clock: Clock) -> None:
    """It asked for 5 s, for each model and route. Mutants: no pause at all; a pause of the one request alone."""
    assert place.takes("m", CHAT)
    assert refused(place, clock, 5.0) == 5.0
    for passed in (0.0, 4.9):
        clock.now += passed
        assert not place.takes("m", CHAT)
        assert not place.takes("n", "/v1/completions")
    clock.now += 0.2
    assert place.takes("m", CHAT)


def test_it_pauses_once_for_all_that_was_sent_before(place: Place, clock: Clock) -> None:
    """Mutant: each of eight refusals at once doubles the pause: half a minute for one burst."""
    sent = [place.limit.send() for _ in range(8)]
    clock.now += 1
    pauses = [place.full(each, None) for each in sent]
    assert pauses[0] > 0.0
    assert pauses[1:] == [0.0] * 7


def test_a_pause_of_our_own_doubles_while_nothing_is_answered(place: Place, clock: Clock) -> None:
    """From 0.25 to 30 s, each a quarter more or less. Mutants: no growth; no bound; none shorter after an answer."""
    wanted = FIRST_PAUSE
    for _ in range(10):
        pause = refused(place, clock, None)
        assert wanted * 0.75 <= pause <= wanted * 1.25
        clock.now += pause - 0.01
        assert not place.takes("m", CHAT)
        clock.now += 0.02
        assert place.takes("m", CHAT)
        wanted = min(wanted * 2, LONGEST_OWN_PAUSE)
    assert wanted == LONGEST_OWN_PAUSE
    answered(place)
    assert refused(place, clock, None) <= FIRST_PAUSE * 1.25


def test_a_server_may_not_ask_for_ever(place: Place, clock: Clock) -> None:
    """Mutant: a Retry-After of a week is kept."""
    assert refused(place, clock, 7 * 86_400.0) == LONGEST_PAUSE


def test_a_model_is_blocked_for_longer_each_time(place: Place, clock: Clock) -> None:
    """The other model goes on. Mutants: the whole server; a block for ever; the same ten minutes each time."""
    unknown = Closed(scope=Scope.MODEL, reason="does not know the model", hint="load it")
    for lasts in (FIRST_BLOCK, FIRST_BLOCK * 2):
        place.close(unknown, "m", CHAT)
        assert place.takes("n", CHAT)
        clock.now += lasts - 1
        assert not place.takes("m", CHAT)
        clock.now += 2
        assert place.takes("m", CHAT)
    answered(place)  # it is there again: the next time begins with ten minutes
    place.close(unknown, "m", CHAT)
    clock.now += FIRST_BLOCK + 1
    assert place.takes("m", CHAT)
