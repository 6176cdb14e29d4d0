"""A server with OpenAI's API that misbehaves as told, by a seed: it refuses, breaks off, stalls, dies and returns.

It answers with the echo engine, for whatever models it was given, in a thread of its own. HTTP is written by hand, so
that a connection can be reset in the middle of a body.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import threading
from collections import Counter
from collections.abc import Coroutine, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from email.utils import formatdate
from time import time
from typing import Any, Self, TypeVar

from tests.rigs.parrot import parrot

T = TypeVar("T")

PHRASES = {
    200: "OK",
    307: "Temporary Redirect",
    401: "Unauthorized",
    404: "Not Found",
    429: "Too Many Requests",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Temper:
    """How often, of 1, it misbehaves in which way."""

    too_many: float = 0.0  # 429 without Retry-After
    seconds: float = 0.0  # 429 with Retry-After in seconds
    date: float = 0.0  # 503 with Retry-After as a date
    reset: float = 0.0  # the connection is reset within the body
    truncated: float = 0.0  # 200, with JSON that ends in the middle
    stalls: float = 0.0  # half a second without a byte
    fails: float = 0.0  # 500


class Hostile:
    """One server, at ``url``. ``capacity``: more requests at once are refused with 503.

    ``answered`` counts whole answers by the text that was asked; ``most`` is how many ran at once; ``refusals`` counts
    what was refused for ``capacity``; ``statuses`` are forced: the next answers have them, whatever is asked.
    """

    def __init__(
        self,
        *models: str,
        capacity: int | None = None,
        latency: float = 0.0,
        temper: Temper = Temper(),
        seed: int = 0,
        key: str | None = None,
        queues: bool = False,
    ) -> None:
        self.models = list(models) or ["m"]
        self.capacity, self.temper, self.key = capacity, temper, key
        self.answered: Counter[str] = Counter()
        self.headers: list[Mapping[str, str]] = []
        self.posts = self.refusals = self.most = self.running = self.resets = 0
        self.forced: tuple[int, Mapping[str, str], bytes] | None = None
        self.no_list = False
        self.frozen = False  # takes requests and answers none, not even for its models
        self.lacks: frozenset[str] = frozenset()  # routes
        self._latency = latency
        self._room = asyncio.Semaphore(capacity) if queues and capacity else None
        self._random = random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="hostile", daemon=True)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._serving: set[asyncio.Task[None]] = set()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> Self:
        self._thread.start()
        self.return_()
        return self

    def __exit__(self, *_: object) -> None:
        self.die()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def return_(self) -> None:
        """Listen, again."""
        self._call(self._listen())

    def die(self) -> None:
        """Stop listening, and reset every connection."""
        self._call(self._end())

    def _call(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(30)

    async def _listen(self) -> None:
        self._engine = parrot(*self.models, latency=timedelta(seconds=self._latency))
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=500)

    async def _end(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            _reset(writer)
        for task in (serving := list(self._serving)):
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        task = asyncio.current_task()
        assert task is not None
        self._serving.add(task)
        try:
            while True:
                method, path, headers, body = await _request(reader)
                self.headers = [*self.headers[-9:], headers]
                if not await self._answer(writer, method, path, headers, body):
                    return
                if headers.get("connection") == "close":
                    return
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            return
        finally:
            self._serving.discard(task)
            self._writers.discard(writer)
            writer.close()

    async def _answer(  # noqa: PLR0911
        self, writer: asyncio.StreamWriter, method: str, path: str, headers: Mapping[str, str], body: bytes
    ) -> bool:
        """Answer; return whether the connection continues."""
        if self.frozen:
            await asyncio.sleep(3600)
        if self.key is not None and headers.get("authorization") != f"Bearer {self.key}":
            words = f"Incorrect API key provided: {headers.get('authorization', '')}"
            return await _write(writer, 401, _error(401, words, code="invalid_api_key"))
        if method == "GET":
            listed = _json({"object": "list", "data": [{"id": model} for model in self.models]})
            return await _write(writer, *((404, b"") if self.no_list else (200, listed)))
        self.posts += 1
        if path in self.lacks:
            return await _write(writer, 404, _json({"detail": "Not Found"}))
        if self.forced is not None:
            status, extra, forced = self.forced
            return await _write(writer, status, forced, extra)
        if self.capacity is not None and self._room is None and self.running >= self.capacity:
            self.refusals += 1
            return await _write(writer, 503, _error(503, "full"))
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            if self._room is not None:
                async with self._room:
                    return await self._misbehave(writer, path, body)
            return await self._misbehave(writer, path, body)
        finally:
            self.running -= 1

    async def _misbehave(self, writer: asyncio.StreamWriter, path: str, body: bytes) -> bool:  # noqa: PLR0911
        temper, dice = self.temper, self._random.random()
        for way in ("too_many", "seconds", "date", "reset", "truncated", "stalls", "fails"):
            if dice < getattr(temper, way):
                break
            dice -= getattr(temper, way)
        else:
            way = ""
        match way:
            case "too_many":
                return await _write(writer, 429, _error(429, "slow down"))
            case "seconds":
                return await _write(writer, 429, _error(429, "slow down"), {"Retry-After": "0.2"})
            case "date":
                date = {"Retry-After": formatdate(time() + 1, usegmt=True), "Date": formatdate(usegmt=True)}
                return await _write(writer, 503, b"<html>busy</html>", date)
            case "fails":
                return await _write(writer, 500, _error(500, "out of luck"))
            case "stalls":
                await asyncio.sleep(0.5)
        reply = await self._engine.post(path, body)
        if way == "reset":
            self.resets += 1
            await _write(writer, reply.status, reply.body, cut=len(reply.body) // 2)
            _reset(writer)
            return False
        if way == "truncated":
            return await _write(writer, reply.status, reply.body[: len(reply.body) // 2])
        self.answered[_asked(body)] += reply.status == 200
        return await _write(writer, reply.status, reply.body, {"x-request-id": reply.request_id or ""})


async def _request(reader: asyncio.StreamReader) -> tuple[str, str, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
    method, path, _ = head[0].split(" ", 2)
    headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:])}
    return method, path, headers, await reader.readexactly(int(headers.get("content-length", 0)))


async def _write(
    writer: asyncio.StreamWriter,
    status: int,
    body: bytes,
    headers: Mapping[str, str] = {},
    *,
    cut: int | None = None,
) -> bool:
    fields = {"Content-Type": "application/json", **headers, "Content-Length": str(len(body))}
    lines = [f"HTTP/1.1 {status} {PHRASES.get(status, 'Status')}", *(f"{k}: {v}" for k, v in fields.items())]
    writer.write("\r\n".join([*lines, "", ""]).encode() + body[:cut])
    await writer.drain()
    return True


def _reset(writer: asyncio.StreamWriter) -> None:
    """Have the kernel send RST in place of FIN."""
    if (connection := writer.get_extra_info("socket")) is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _asked(body: bytes) -> str:
    messages: Sequence[Mapping[str, Any]] = json.loads(body).get("messages", [{}])
    return str(messages[-1].get("content"))


def _error(status: int, message: str, *, code: object = None) -> bytes:
    return _json({"error": {"message": message, "type": "error", "param": None, "code": code or status}})


def _json(document: object) -> bytes:
    return json.dumps(document).encode()
