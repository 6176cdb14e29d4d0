"""The echo engine: answers each request with its own text, in this process, without a model.

For tests, drills and measuring vbatch itself; it serves only the model ``echo``. A request whose ``metadata`` holds
``{"vbatch_echo": FAULT}`` causes a fault on purpose; see ``Fault``. ``echo_answers`` makes the answers.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections import Counter
from collections.abc import Collection, Mapping
from datetime import timedelta
from enum import StrEnum
from http import HTTPStatus
from typing import Any

import msgspec

from vbatch.engine import Blame, EngineDied, EngineStartFailed, Reply, echo_http
from vbatch.engine.asgi import Message, Receive, Send
from vbatch.engine.echo_answers import ENDPOINTS, Body, Invalid, identity, transcription
from vbatch.engine.kinds import ECHO_MODEL

MAX_INFLIGHT = 256
SLOW = timedelta(seconds=5)


class Fault(StrEnum):
    """The faults that ``metadata.vbatch_echo`` can ask for. Some take an argument after a colon."""

    EXIT = "exit"  # the engine dies with all its running requests
    KILL = "kill"  # SIGKILL ends the whole worker process
    HANG = "hang"  # the request is never answered
    SLOW = "slow"  # slow:0.5 answers after half a second (default 5 s)
    ERROR400 = "error400"  # the request is refused
    BYTES = "bytes"  # the answer is not JSON
    ERROR500 = "error500"  # the request fails; error500:2 fails twice and then answers


async def load(*, model: str, latency: timedelta = timedelta(0)) -> EchoEngine:
    """Make an engine that takes ``latency`` for each answer.

    Raises EngineStartFailed for any model but ``echo``, so that no real request is answered with its own text.
    """
    if model != ECHO_MODEL:
        raise EngineStartFailed(
            f"the echo engine serves only the model {ECHO_MODEL}", transient=False, blame=Blame.FLAGS
        )
    return EchoEngine(model, latency)


class EchoEngine:
    """See ``vbatch.engine.Engine``."""

    max_inflight = MAX_INFLIGHT
    sequences = MAX_INFLIGHT
    killed = False

    def __init__(self, model: str, latency: timedelta, *others: str) -> None:
        self.names = frozenset({model, *others})
        self.refused: Mapping[str, str] = {}
        self._latency = latency.total_seconds()
        self._waiting: set[asyncio.Future[None]] = set()
        self._failures: Counter[str] = Counter()
        self.died: str | None = None
        self.endpoints: Collection[str] | None = None
        self.lacking: Mapping[str, str] = {}
        self.upload_limit: tuple[int, str] | None = None
        self.progress = 0

    async def post(self, url: str, body: bytes) -> Reply:
        """Answer one request; the answer depends only on its body."""
        return await self._post(url, body, None)

    async def post_form(self, url: str, body: bytes, upload: bytes) -> Reply:
        """Answer one request that comes with a file; the answer depends only on both."""
        return await self._post(url, body, upload)

    async def serve(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request of another client; each word of a stream takes the latency. Raises EngineDied."""
        await echo_http.serve(scope, receive, send, names=self.names, post=self.post, pause=self._pause)

    async def _post(self, url: str, body: bytes, upload: bytes | None) -> Reply:
        if self.died is not None:
            raise EngineDied(self.died)
        name = identity(body if upload is None else body + upload)
        status = HTTPStatus.OK
        try:
            request = _decode(body)
            if request.model not in self.names:
                raise _Refused(HTTPStatus.NOT_FOUND, f"The model `{request.model}` does not exist.", "model")
            if request.metadata and (word := request.metadata.get("vbatch_echo")) is not None:
                await self._inject(str(word), name)
            if self._latency:
                await self._wait(self._latency)
            answer = _answer(url, request, name) if upload is None else transcription(upload)
        except _Refused as refusal:
            status, answer = refusal.status, refusal.answer
        except _NotJson:
            self.progress += 1
            return Reply(status=status, body=b"\0\n\xff", request_id=f"echo-{name}")
        self.progress += 1
        return Reply(status=status, body=_encode(answer), request_id=f"echo-{name}")

    async def close(self) -> None:
        """Stop answering."""
        self._die("the echo engine was closed")

    async def _inject(self, word: str, name: str) -> None:
        kind, _, argument = word.partition(":")
        match kind:
            case Fault.EXIT:
                self._die("the echo engine exited, as vbatch_echo asked")
                raise EngineDied("the echo engine exited, as vbatch_echo asked")
            case Fault.KILL:
                os.kill(os.getpid(), signal.SIGKILL)
            case Fault.HANG:
                await self._wait(None)
            case Fault.SLOW:
                await self._wait(_number(argument, SLOW.total_seconds()))
            case Fault.BYTES:
                raise _NotJson
            case Fault.ERROR400:
                raise _Refused(HTTPStatus.BAD_REQUEST, "refused, as vbatch_echo asked")
            case Fault.ERROR500:
                self._failures[name] += 1
                if self._failures[name] <= _number(argument, float("inf")):
                    raise _Refused(HTTPStatus.INTERNAL_SERVER_ERROR, "failed, as vbatch_echo asked")
            case _:
                known = ", ".join(Fault)
                raise _Refused(
                    HTTPStatus.BAD_REQUEST,
                    f"vbatch_echo: {kind} is not one of {known}",
                    "metadata.vbatch_echo",
                )

    async def _wait(self, seconds: float | None) -> None:
        """Wait this long, or without a limit. Raises EngineDied when the engine dies meanwhile."""
        loop = asyncio.get_running_loop()
        waiting = loop.create_future()
        self._waiting.add(waiting)
        timer = None if seconds is None else loop.call_later(seconds, _wake, waiting)
        try:
            await waiting
        finally:
            self._waiting.discard(waiting)
            if timer is not None:
                timer.cancel()

    async def _pause(self) -> None:
        if self.died is not None:
            raise EngineDied(self.died)
        if self._latency:
            await self._wait(self._latency)
        self.progress += 1

    def _die(self, cause: str) -> None:
        if self.died is None:
            self.died = cause
            for waiting in self._waiting:
                if not waiting.done():
                    waiting.set_exception(EngineDied(cause))


class _NotJson(Exception):
    """The request asks for an answer that is not JSON."""


class _Refused(Exception):
    """An HTTP error to answer with, as OpenAI's error object."""

    def __init__(self, status: HTTPStatus, message: str, param: str | None = None) -> None:
        self.status = status
        kind = status.phrase.title().replace(" ", "") + ("" if status.phrase.endswith("Error") else "Error")
        self.answer = {"error": {"message": message, "type": kind, "param": param, "code": int(status)}}
        super().__init__(message)


_decode_body = msgspec.json.Decoder(Body).decode
_encode = msgspec.json.Encoder().encode


def _decode(body: bytes) -> Body:
    try:
        return _decode_body(body)
    except msgspec.DecodeError as error:
        raise _Refused(HTTPStatus.BAD_REQUEST, str(error)) from None


def _answer(url: str, request: Body, name: str) -> dict[str, Any]:
    endpoint = ENDPOINTS.get(url)
    if endpoint is None:
        raise _Refused(HTTPStatus.NOT_FOUND, f"{url} is not an endpoint of the echo engine")
    try:
        return endpoint(request, name)
    except Invalid as error:
        raise _Refused(HTTPStatus.BAD_REQUEST, error.message, error.param) from None


def _number(argument: str, default: float) -> float:
    try:
        return float(argument) if argument else default
    except ValueError:
        raise _Refused(
            HTTPStatus.BAD_REQUEST, f"vbatch_echo: {argument} is not a number", "metadata.vbatch_echo"
        ) from None


def _wake(waiting: asyncio.Future[None]) -> None:
    if not waiting.done():
        waiting.set_result(None)
