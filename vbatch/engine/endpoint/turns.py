"""Whose turn it is: requests wait here for a server that has their model and room."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence

from vbatch.engine.endpoint.limits import Sent
from vbatch.engine.endpoint.place import Place


class Turns:
    """The requests that wait, of each model in order. ``priorities``: of which model the first free server is.

    ``total``: never more than so many requests at once, at all servers together.
    """

    def __init__(self, places: Sequence[Place], *, total: int | None) -> None:
        self.priorities: dict[str, int] = {}
        self._places = places
        self._total = total
        self._waiting: dict[str, deque[tuple[str, asyncio.Future[tuple[Place, Sent]]]]] = {}

    async def take(self, model: str, url: str, *, again: bool) -> tuple[Place, Sent]:
        """Wait for a server that can take the request, and count it there. ``again``: it goes before the others."""
        queue = self._waiting.get(model)
        if not queue and (place := self._best(model, url)) is not None:
            return place, place.limit.send()
        if queue is None:
            queue = self._waiting[model] = deque()
        turn: asyncio.Future[tuple[Place, Sent]] = asyncio.get_running_loop().create_future()
        (queue.appendleft if again else queue.append)((url, turn))
        self.give()  # what stands before it may have been given up
        try:
            return await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                turn.result()[0].limit.end()
                self.give()
            else:
                turn.cancel()
            raise

    def give(self) -> None:
        """Give free servers to the requests that wait: by priority, and among equals to each model in turn."""
        while self._give_one():
            pass

    def urls_of(self, model: str) -> list[str]:
        """Return the urls for which requests of a model wait."""
        waiting = (url for url, turn in self._waiting.get(model, ()) if not turn.done())
        return list(dict.fromkeys(waiting))

    def fail(self, error: Exception) -> None:
        """End the waiting of all."""
        for queue in self._waiting.values():
            for _, turn in queue:
                if not turn.done():
                    turn.set_exception(error)
        self._waiting.clear()

    def _give_one(self) -> bool:
        for model in sorted(self._waiting, key=lambda model: -self.priorities.get(model, 0)):
            queue = self._waiting[model]
            while queue and queue[0][1].done():  # given up
                queue.popleft()
            if not queue:
                del self._waiting[model]
            elif (place := self._best(model, queue[0][0])) is not None:
                queue.popleft()[1].set_result((place, place.limit.send()))
                self._waiting[model] = self._waiting.pop(model)  # the next time the others are first
                return True
        return False

    def _best(self, model: str, url: str) -> Place | None:
        """Return the server with the largest share of its limit free."""
        if self._total is not None and sum(place.limit.running for place in self._places) >= self._total:
            return None
        ready = [place for place in self._places if place.takes(model, url)]
        return min(ready, key=lambda place: place.limit.running / place.limit.value, default=None)
