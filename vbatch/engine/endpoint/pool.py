"""Give requests to several servers: each to one that has its model and room, a refused one again, to whichever is free.

A server that cannot be reached is asked until it is back, and its requests go to the others at once. Where none is left
a request waits; it never fails for that.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from itertools import chain

import msgspec

from vbatch.engine import EngineDied, NotSent, Reply
from vbatch.engine.asgi import Message, Receive, Send
from vbatch.engine.endpoint.client import MOST, Broken, TooLarge
from vbatch.engine.endpoint.limits import Sent
from vbatch.engine.endpoint.place import NOT_ASKED, Block, Place
from vbatch.engine.endpoint.rules import Answered, Closed, Cut, Full, judge
from vbatch.engine.endpoint.turns import Turns
from vbatch.engine.endpoint.watch import Watch
from vbatch.engine.multipart import form
from vbatch.text import harmless, size

REFUSALS = 20  # of one request, while others are answered there: they count as one attempt
FIRST_ANSWER = 15.0  # seconds at the start until servers that hang are left behind
_CLOSED = "the connections to the endpoints were closed"


class _Body(msgspec.Struct, gc=False):
    model: str = ""


_decode = msgspec.json.Decoder(_Body).decode


@dataclass(frozen=True, slots=True)
class _Request:
    model: str
    url: str
    body: bytes
    content_type: str = "application/json"


class Standing(Enum):
    """Whether requests for a model can be answered; a Block says that they cannot, and why."""

    OPEN = auto()
    UNKNOWN = auto()  # a server that cannot be reached may have it


class Pool:
    """See ``vbatch.engine.Loaded``: an engine whose models are those of its servers, and change with them.

    ``names`` are the models that it can answer for.
    """

    killed = False
    endpoints: Collection[str] | None = None
    upload_limit: tuple[int, str] | None = None

    def __init__(
        self, places: Sequence[Place], *, total: int | None, request_timeout: timedelta | None
    ) -> None:
        self.places = tuple(places)
        self.refused: Mapping[str, str] = {}
        self.lacking: Mapping[str, str] = {}
        self.died: str | None = None
        self.answers = 0
        self._total = total
        self._timeout = request_timeout.total_seconds() if request_timeout else None
        self.turns = Turns(self.places, total=total)
        for place in self.places:
            place.on_change = self.turns.give
        self._watches = {place: Watch(place) for place in self.places}
        self._tasks = [asyncio.create_task(watch.run()) for watch in self._watches.values()]

    async def begin(self) -> None:
        """Wait until each server has answered once, or for a while."""
        looks = (watch.looked.wait() for watch in self._watches.values())
        try:
            async with asyncio.timeout(FIRST_ANSWER):
                await asyncio.gather(*looks)
        except TimeoutError:
            return

    @property
    def failure(self) -> BaseException | None:
        """A defect of vbatch's that ended the looks at a server; the worker raises it."""
        ended = (task for task in self._tasks if task.done() and not task.cancelled())
        return next((task.exception() for task in ended), None)

    @property
    def names(self) -> frozenset[str]:
        """The models that a server has, and is not blocked for."""
        found = chain.from_iterable(place.models or () for place in self.places)
        return frozenset(name for name in found if self.standing(name) is Standing.OPEN)

    @property
    def max_inflight(self) -> int:
        """What all servers together are given at once."""
        return self._capped(sum(place.limit.value for place in self.places if place.down is None))

    @property
    def sequences(self) -> int:
        """What all servers together are given at once."""
        return self.max_inflight

    @property
    def progress(self) -> int:
        """It rises while the servers are looked at: whether one of them hangs is not for the worker to say."""
        return self.answers + sum(watch.looks for watch in self._watches.values())

    @property
    def running(self) -> int:
        """How many requests the servers have now."""
        return sum(place.limit.running for place in self.places)

    def room(self, model: str) -> int:
        """Return how many requests for a model are worth having at once, a few beyond those that can be sent."""
        limits = (
            place.limit.value
            for place in self.places
            if place.down is None and model in (place.models or ()) and place.block_of(model) is None
        )
        return self._capped(math.ceil(sum(limits) * 1.125) + 1)

    def standing(self, model: str, url: str = "") -> Standing | Block:
        """Return whether requests for a model at a url can be answered, here or when a server is back."""
        unknown, blocks = False, list[Block]()
        for place in self.places:
            block = place.block_of(model, url)
            if place.models is None:
                unknown |= block is None
            elif model not in place.models:
                continue
            elif block is None:
                return Standing.OPEN
            if block is not None:
                blocks.append(block)
        if unknown:
            return Standing.UNKNOWN
        if blocks:
            return blocks[0]
        asked = ", ".join(place.shown for place in self.places)
        return Block(
            reason=f"no endpoint has {harmless(model)} ({asked})",
            hint="vbatch retry ID -m MODEL, or add a server that has it: [endpoints.NAME] in config.toml",
            until=0.0,
            lasts=0.0,
        )

    def stuck(self, model: str) -> tuple[str, Block] | None:
        """Return why requests for a model that were given cannot be answered, and at which url (empty: at any)."""
        for url in ("", *self.turns.urls_of(model)):
            standing = self.standing(model, url)
            if isinstance(standing, Block):
                return url, standing
        return None

    @property
    def trouble(self) -> str | None:
        """Say in one line which servers cannot be used; None where all can."""
        blocks = [block.reason for place in self.places if (block := place.block_of()) is not None]
        down = [
            f"{place.shown}: {place.down}"
            for place in self.places
            if place.block_of() is None and place.down not in (None, NOT_ASKED)
        ]
        nothing = len(blocks) + len(down) == len(self.places)
        waits = "waiting for" if nothing else "cannot be reached:"
        return "; ".join([*blocks, *(f"{waits} {words}" for words in down)]) or None

    async def post(self, url: str, body: bytes) -> Reply:
        """Answer one request. Raises EngineDied and NotSent."""
        return await self._post(_Request(_model_of(body), url, body))

    async def post_form(self, url: str, body: bytes, upload: bytes) -> Reply:
        """Answer one request that comes with a file. Raises EngineDied and NotSent."""
        return await self._post(_Request(_model_of(body), url, *form(body, upload)))

    async def serve(self, scope: Message, receive: Receive, send: Send) -> None:  # noqa: ARG002
        """Refuse: who wants to chat asks a server itself. ``configured`` allows no worker with both."""
        raise EngineDied("the endpoint engine answers no chats")

    async def close(self) -> None:
        """End every connection, and every look."""
        self.died = _CLOSED
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self.turns.fail(EngineDied(_CLOSED))
        for place in self.places:
            await place.client.close()

    async def _post(self, request: _Request) -> Reply:
        model, url = request.model, request.url
        refusals, seen = 0, dict[Place, int]()
        while True:
            if self.died is not None:
                raise EngineDied(self.died)
            place, sent = await self.turns.take(model, url, again=bool(seen))
            before = seen.setdefault(place, place.successes)
            verdict = await self._ask(place, sent, request)
            last: Reply | NotSent
            match verdict:
                case Answered():
                    self.answers += 1
                    return verdict.reply
                case Closed():
                    place.close(verdict, model, url)
                    self.turns.give()
                    continue
                case Full():
                    last = verdict.reply
                case Broken() | Cut():
                    last = NotSent(
                        "connection_error",
                        f"The endpoint {place.name} broke off {REFUSALS} times: {verdict.cause}.",
                        transient=True,
                        retry_after=0.0,
                    )
            refusals += place.successes > before
            seen[place] = place.successes
            if refusals >= REFUSALS:
                if isinstance(last, NotSent):
                    raise last
                return last

    async def _ask(
        self, place: Place, sent: Sent, request: _Request
    ) -> Answered | Closed | Full | Cut | Broken:
        """Send a request to one server, and have the server's state follow what becomes of it. Raises NotSent."""
        pause = 0.0
        verdict: Answered | Closed | Full | Cut | Broken
        try:
            async with asyncio.timeout(self._timeout):
                answer = await place.client.post(request.url, request.body, request.content_type)
            verdict = judge(answer)
            match verdict:
                case Answered() if answer.status < 500:
                    place.succeeded(sent, request.model, request.url, verdict.tokens)
                case Full():
                    pause = place.full(sent, verdict.pause)
                case Cut():
                    pause = place.broke(sent, verdict.cause, reached=True)
        except TimeoutError:
            place.slow(sent)
            raise NotSent(
                "request_timeout",
                f"The endpoint did not answer within {self._timeout:g} s (request_timeout).",
            ) from None
        except TooLarge:
            raise NotSent(
                "answer_too_large", f"The answer is larger than {size(MOST)}; vbatch takes no larger one."
            ) from None
        except Broken as error:
            verdict = error
            pause = place.broke(sent, error.cause, reached=error.reached)
            self._watches[place].look_soon()
        finally:
            place.limit.end()
            if pause:
                asyncio.get_running_loop().call_later(pause, self.turns.give)
            self.turns.give()
        return verdict

    def _capped(self, number: int) -> int:
        return max(1, number if self._total is None else min(number, self._total))


def _model_of(body: bytes) -> str:
    try:
        return _decode(body).model
    except (msgspec.DecodeError, UnicodeDecodeError):
        return ""
