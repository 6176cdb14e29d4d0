"""Requests that name a file by ``file_url`` (``/v1/audio/…``): fetch it just before the engine gets it, as a form.

What is fetched stays in memory until its request is answered, so all of it together is limited, too.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace

import msgspec

from vbatch.engine import Loaded, NotSent, Reply
from vbatch.engine.asgi import Message, Receive, Send
from vbatch.outbound.fetch import Limits, NotFetched, Trouble, fetch
from vbatch.protocol import AUDIO_ENDPOINTS, with_fields

HELD = 1 << 30  # bytes of files in memory, of all requests of one engine


class _Named(msgspec.Struct, gc=False):
    file_url: str


_decode = msgspec.json.Decoder(_Named).decode


class Memory:
    """So many bytes, given to who waits in turn. One that asks for more than there is gets it when nothing is held."""

    def __init__(self, size: int) -> None:
        self._size = size
        self.held = 0
        self._waiting: deque[tuple[int, asyncio.Future[None]]] = deque()

    @asynccontextmanager
    async def take(self, size: int) -> AsyncIterator[Taken]:
        """Hold so many bytes for as long as the context lasts, or fewer once the need is known."""
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((size, turn))
        taken = Taken(self, size)
        try:
            self.give(0)
            await turn
            yield taken
        finally:
            if turn.done() and not turn.cancelled():
                self.give(taken.size)
            else:
                turn.cancel()
                self.give(0)

    def give(self, size: int) -> None:
        """Give so many bytes back, to those whose turn it is."""
        self.held -= size
        while self._waiting:
            wanted, turn = self._waiting[0]
            if not turn.done():
                if self.held and self.held + wanted > self._size:
                    return
                self.held += wanted
                turn.set_result(None)
            self._waiting.popleft()


class Taken:
    """What one holder has."""

    def __init__(self, memory: Memory, size: int) -> None:
        self._memory = memory
        self.size = size

    def shrink(self, size: int) -> None:
        """Give back all but so many bytes."""
        left = self.size - size
        self.size = size
        self._memory.give(left)


class Hearing:
    """An engine (``vbatch.engine.Engine``) whose requests may name audio. ``limits`` are those of the settings.

    ``inner`` is the engine that answers them.
    """

    def __init__(self, engine: Loaded, limits: Limits) -> None:
        self.inner = engine
        taken = engine.upload_limit
        if taken is not None and taken[0] < limits.size:
            limits = replace(limits, size=taken[0], size_name=taken[1])
        self._limits = limits
        self._memory = Memory(HELD)
        self._waited = 0

    @property
    def max_inflight(self) -> int:
        """The engine's own."""
        return self.inner.max_inflight

    @property
    def sequences(self) -> int:
        """The engine's own."""
        return self.inner.sequences

    @property
    def died(self) -> str | None:
        """The engine's own."""
        return self.inner.died

    @property
    def killed(self) -> bool:
        """The engine's own."""
        return self.inner.killed

    @property
    def progress(self) -> int:
        """That of the engine; it also rises while a file is fetched: an engine that waits for one does not hang."""
        return self.inner.progress + self._waited

    @property
    def names(self) -> frozenset[str]:
        """The engine's own."""
        return self.inner.names

    @property
    def refused(self) -> Mapping[str, str]:
        """The engine's own."""
        return self.inner.refused

    @property
    def endpoints(self) -> Collection[str] | None:
        """The engine's own."""
        return self.inner.endpoints

    @property
    def lacking(self) -> Mapping[str, str]:
        """The engine's own."""
        return self.inner.lacking

    async def post(self, url: str, body: bytes) -> Reply:
        """Answer one request. Raises EngineDied, and NotSent where its file cannot be had."""
        if url not in AUDIO_ENDPOINTS:
            return await self.inner.post(url, body)
        try:
            source = _decode(body).file_url
        except msgspec.ValidationError:
            raise NotSent("audio_invalid", "The body names no audio: file_url must be a URL.") from None
        async with self._memory.take(self._limits.size) as taken:
            try:
                upload = await fetch(source, self._limits, waiting=self._wait)
            except NotFetched as error:
                raise _not_sent(error) from None
            taken.shrink(len(upload))
            return await self.inner.post_form(url, with_fields(body, {"file_url": None}), upload)

    async def serve(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request of another client, who sends no ``file_url``."""
        await self.inner.serve(scope, receive, send)

    def _wait(self) -> None:
        self._waited += 1

    async def close(self) -> None:
        """End the engine."""
        await self.inner.close()


def _not_sent(error: NotFetched) -> NotSent:
    return NotSent(
        f"audio_{error.trouble}",
        f"The audio was not fetched: {error}.",
        transient=error.trouble is Trouble.UNREACHABLE,
        retry_after=error.retry_after,
    )
