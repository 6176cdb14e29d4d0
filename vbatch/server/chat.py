"""Chat beside the batch: requests go through to the worker that has their model loaded, streams included.

What a worker says comes back as it is. The key of this server ends here: it is no key of the worker's.
"""

from __future__ import annotations

import asyncio
import shlex
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import msgspec
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from vbatch import pausing
from vbatch.engine import kinds
from vbatch.protocol import CHAT_PATHS, MODELS_PATH
from vbatch.server import errors
from vbatch.server.errors import ApiError
from vbatch.server.worker_client import Answer, WorkerGone, ask
from vbatch.system import sockets

MOST = 256  # chats at once
LARGEST = 64 << 20  # bytes of a request, pictures included
HELD = 512 << 20  # bytes of all requests at once
RETRY_SECONDS = 30
_ASKED = 5.0  # seconds for a worker to name its models; its loop may stand still while it loads one
_OTHERS = 0.2  # seconds more, for other workers with the same model
_PIECE = 60.0  # seconds for a client to send the next piece of its request

# Between this server and its client alone (RFC 9110, 7.6.1), or of this server.
_OWN = frozenset(
    {
        b"authorization",
        b"connection",
        b"content-length",
        b"cookie",
        b"expect",
        b"host",
        b"keep-alive",
        b"origin",
        b"proxy-authorization",
        b"proxy-connection",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"x-api-key",
    }
)
_OF_ANSWER = frozenset(
    {b"connection", b"keep-alive", b"transfer-encoding", b"date", b"server", b"x-request-id"}
)


class _Named(msgspec.Struct, gc=False):
    model: str | None = None


_decode = msgspec.json.Decoder(_Named).decode
_models = msgspec.json.Decoder(dict[str, Any]).decode


class Chats:
    """Passes chats on, as a pure ASGI application. Of several workers with a model the one with the fewest gets it."""

    def __init__(self) -> None:
        self._running: Counter[Path] = Counter()
        self._chats = self._held = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request. Raises ApiError."""
        if self._chats >= MOST:
            raise _too_many()
        self._chats += 1
        held = 0

        def hold(size: int) -> None:
            nonlocal held
            held += size
            self._held += size
            if self._held > HELD:
                raise _too_many()

        try:
            await self._answer(await _body(scope, receive, hold), scope, receive, send)
        finally:
            self._chats -= 1
            self._held -= held

    async def _answer(self, body: bytes, scope: Scope, receive: Receive, send: Send) -> None:
        model = _model(body)
        settings = scope["app"].state.context.settings
        found = await serving(settings.state_dir, model)
        fitting = [path for path, names in found.items() if model in names]
        if not fitting:
            refusal = errors.response(_not_loaded(model, found, pausing.shown(settings)))
            refusal.headers["x-should-retry"] = "false"  # no client gets it loaded by asking again
            await refusal(scope, receive, send)
            return
        worker = min(fitting, key=lambda path: self._running[path])
        with self._counted(worker):
            await _until_left(receive, self._pass_on(worker, scope, body, send))

    async def _pass_on(self, worker: Path, scope: Scope, body: bytes, send: Send) -> None:
        headers = [(name, value) for name, value in scope["headers"] if name.lower() not in _OWN]
        started = False
        try:
            async with ask(worker, scope["method"], scope["path"], headers=headers, body=body) as answer:
                async for message in _messages(answer):
                    started = True
                    await send(message)
        except WorkerGone:
            if started:
                return  # uvicorn breaks off an answer that is not whole: so does the client see it
            raise ApiError(
                503, "The worker ended before it answered.", code="worker_gone", retry_after=RETRY_SECONDS
            ) from None

    @contextmanager
    def _counted(self, worker: Path) -> Iterator[None]:
        self._running[worker] += 1
        try:
            yield
        finally:
            self._running[worker] -= 1
            if not self._running[worker]:
                del self._running[worker]


async def serving(state_dir: Path, model: str) -> dict[Path, frozenset[str]]:
    """Return the sockets of the workers that answer, and the names at which each does: its adapters and aliases too.

    Where one has the model, those that are silent are not waited for.
    """
    asking = {asyncio.ensure_future(_names(path)): path for path in sockets.found(state_dir)}
    found: dict[Path, frozenset[str]] = {}
    pending = set(asking)
    patience = _ASKED
    while pending:
        done, pending = await asyncio.wait(pending, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
        if not done:
            break
        found |= {asking[task]: names for task in done if (names := task.result()) is not None}
        if any(model in names for names in found.values()):
            patience = _OTHERS
    for task in pending:
        task.cancel()
    return found


async def _names(path: Path) -> frozenset[str] | None:
    with suppress(WorkerGone, TimeoutError, msgspec.DecodeError, KeyError, TypeError):
        async with asyncio.timeout(_ASKED), ask(path, "GET", MODELS_PATH) as answer:
            listed = _models(b"".join([piece async for piece in answer.pieces()]))
            return frozenset(model["id"] for model in listed["data"]) if answer.status == 200 else frozenset()
    return None


async def _messages(answer: Answer) -> AsyncIterator[Message]:
    headers = [(name, value) for name, value in answer.headers if name.lower() not in _OF_ANSWER]
    yield {"type": "http.response.start", "status": answer.status, "headers": headers}
    async for piece in answer.pieces():
        yield {"type": "http.response.body", "body": piece, "more_body": True}
    yield {"type": "http.response.body", "body": b"", "more_body": False}


async def _until_left(receive: Receive, answering: Awaitable[None]) -> None:
    """Answer, but no longer than until the client has left: then the worker stops, too."""
    task, leaving = asyncio.ensure_future(answering), asyncio.ensure_future(receive())
    try:
        await asyncio.wait((task, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not task.done():
            task.cancel()
        await asyncio.wait((task, leaving))
    if not task.cancelled():
        task.result()


async def _body(scope: Scope, receive: Receive, hold: Callable[[int], None]) -> bytes:
    length = dict(scope["headers"]).get(b"content-length", b"0")
    too_large = ApiError(
        413, f"The request is larger than {LARGEST >> 20} MiB.", code="request_too_large", close=True
    )
    if length.isdigit() and int(length) > LARGEST:
        raise too_large
    pieces: list[bytes] = []
    size = 0
    while True:
        try:
            async with asyncio.timeout(_PIECE):
                message = await receive()
        except TimeoutError:
            raise ApiError(408, "The request did not arrive in time.", close=True) from None
        if message["type"] == "http.disconnect":
            raise ApiError(400, "The request is not whole.", close=True)
        pieces.append(message.get("body", b""))
        size += len(pieces[-1])
        hold(len(pieces[-1]))
        if size > LARGEST:
            raise too_large
        if not message.get("more_body", False):
            return b"".join(pieces)


def _too_many() -> ApiError:
    return ApiError(429, "Too many chats are running.", code="too_many_chats", retry_after=5, close=True)


def _model(body: bytes) -> str:
    try:
        model = _decode(body).model
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise ApiError(400, "The body is not a JSON object with a model.", code="invalid_json") from None
    if not model:
        raise ApiError(400, "you must provide a model parameter", param="model")
    return model


def _not_loaded(model: str, found: dict[Path, frozenset[str]], pause: pausing.Pause | None) -> ApiError:
    loaded: Sequence[str] = sorted(name for names in found.values() for name in names)
    command = f"{kinds.worker_command(model, default='vllm')} --preload {shlex.quote(model)}"
    if not found:
        advice = f"no worker answers chat: set chat = true in config.toml and start one with `{command}`"
    else:
        now = f" (loaded: {', '.join(loaded)})" if loaded else ""
        advice = f"submit a batch for it, or start the worker with `{command}`{now}"
    if pause is not None:
        advice = f"the workers here are {pause.words}; to continue: {pause.remedy}"
    message = f"The model {model} is not loaded; {advice}."
    return ApiError(503, message, param="model", code="model_not_loaded", retry_after=RETRY_SECONDS)


_chats = Chats()
routes = [Route(path, _chats, methods=["POST"]) for path in CHAT_PATHS]
