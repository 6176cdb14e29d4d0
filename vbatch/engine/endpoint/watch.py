"""Look after one server: which models it has, whether it is back, and whether it still lives while it is silent."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from vbatch.engine.endpoint.client import Answer, Broken, Client, TooLarge
from vbatch.engine.endpoint.place import Place
from vbatch.engine.endpoint.rules import Answered, Closed, Full, Scope, judge, models_in

LOOK = 30.0  # seconds between two looks at a server that works
FIRST_LOOK = 1.0  # at one that does not, doubled each time
MISSED = 3  # looks in a row without an answer: then a server that took requests is down, too


async def look(client: Client) -> frozenset[str] | Closed | Broken | None:
    """Ask a server for its models: they, or None where it has no list of them, or why it cannot be used."""
    try:
        answer = await client.models()
    except Broken as error:
        return error
    except TooLarge:
        return Broken("the list of its models is too large", reached=True)
    return _meaning(answer)


def _meaning(answer: Answer) -> frozenset[str] | Closed | Broken | None:
    if answer.status in (404, 405, 501):
        return None
    verdict = judge(answer)
    match verdict:
        case Closed():
            return verdict
        case Answered() if answer.status < 300:
            models = models_in(answer)
            return Broken("it has no model yet", reached=True) if models == frozenset() else models
        case Answered() if answer.status < 500:
            return None
        case Answered() | Full():
            return Broken(f"it is not ready (HTTP {answer.status})", reached=True)
    return Broken(verdict.cause, reached=True)


NO_LIST = Closed(
    scope=Scope.ALL,
    reason="has no list of its models (/v1/models)",
    hint='give the address below which it has one, or name them: [endpoints.NAME] models = ["…"] in config.toml',
)


class Watch:
    """Looks at one server for as long as the engine lives."""

    def __init__(self, place: Place, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._place = place
        self._clock = clock
        self._soon = asyncio.Event()
        self._missed = 0
        self._pause = FIRST_LOOK
        self.looked = asyncio.Event()  # at least once
        self.looks = 0

    def look_soon(self) -> None:
        """Look now: something is the matter."""
        self._soon.set()

    async def run(self) -> None:
        """Look, again and again."""
        while True:
            await self._look()
            self.looked.set()
            self.looks += 1
            pause = self._next()
            self._soon.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._soon.wait()
            except TimeoutError:
                continue

    def _next(self) -> float:
        place = self._place
        if place.blocked_until is not None:
            return max(FIRST_LOOK, place.blocked_until - self._clock())
        if place.down is None and not self._missed:
            self._pause = FIRST_LOOK
            return LOOK
        pause, self._pause = self._pause, min(self._pause * 2, LOOK)
        return pause

    async def _look(self) -> None:
        place, answers = self._place, self._place.successes
        found = await look(place.client)
        match found:
            case Broken():
                self._missed = 0 if place.successes > answers else self._missed + 1
                if place.down is not None or (place.models is None and place.lists_models):
                    place.lost(found.cause)
                elif self._missed >= MISSED:
                    place.lost(found.cause)
                    await place.client.hang_up()  # what waits there for an answer goes to the others
                return
            case Closed():
                place.close(found)
            case None if place.lists_models:
                place.close(NO_LIST)
            case _:
                place.found(found)
        self._missed = 0
        if place.blocked_until is not None:
            place.down = None  # it is reached, and says no
