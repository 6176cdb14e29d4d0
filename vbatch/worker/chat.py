"""Chat beside the batch: other clients' requests to the engine that is loaded, as an ASGI application.

A chat gets what the engine's own server answers, unchanged, but nothing from an engine that has died. The batch comes
to no harm by it: what a worker suspects runs without chats beside it, so that no request is blamed for what a chat did.
"""

from __future__ import annotations

import asyncio
import logging
import time
from datetime import timedelta
from http import HTTPStatus

import msgspec

from vbatch.engine import Engine, EngineDied
from vbatch.engine.asgi import DISCONNECT_GRACE, Message, Receive, Send
from vbatch.protocol import CHAT_PATHS, MODELS_PATH
from vbatch.worker.context import Context
from vbatch.worker.stall import Stall

log = logging.getLogger(__name__)

RETRY_SECONDS = 30  # in Retry-After: OpenAI's clients wait that long by themselves, and up to 60
PATIENCE = 300.0  # seconds for a client to send a piece of its request, or to take a piece of the answer


class Chat:
    """The chats of one worker. It refuses them while no engine is there, and where ``refuse`` gave a reason.

    Those that run when it begins to refuse have ``drain_limit`` to end, then they are aborted.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._engine: Engine | None = None
        self._stall: Stall | None = None
        self._chats: set[_Chat] = set()
        self._reason: str | None = None
        self._stopping = False
        self._timer: asyncio.TimerHandle | None = None
        self._ended_at = time.monotonic()
        self._changed = asyncio.Event()
        self.answered = 0  # of the engine that is loaded

    @property
    def running(self) -> int:
        """How many chats have begun and not ended."""
        return len(self._chats)

    @property
    def working(self) -> bool:
        """Whether a chat waits for the engine; one whose client is slow does not."""
        return any(chat.waits_for_engine for chat in self._chats)

    @property
    def last_at(self) -> float:
        """When a chat ran last, by the monotonic clock."""
        return time.monotonic() if self._chats else self._ended_at

    def stalled(self, *, busy: bool = False) -> str | None:
        """Return a cause when the engine has given nothing for too long, with chats or else ``busy``."""
        return None if self._stall is None else self._stall.cause(busy=busy or self.working)

    def attach(self, engine: Engine) -> None:
        """Let chats have this engine."""
        self._engine = engine
        self._stall = Stall(engine, limit=self._context.settings.engine_stall)
        self.answered = 0
        self.refuse(None)

    async def detach(self, cause: str | None) -> None:
        """Take the engine away when its chats have ended. The limit aborts them, or at once a ``cause``: it crashed."""
        if cause is not None:
            self._abort(_words(cause))
        elif (pause := self._context.pausing.active) is not None and pause.now:
            self._abort("the worker is paused")
        self.refuse("the worker unloads its model")
        await self._context.until(asyncio.ensure_future(self._ended()))
        self._engine = self._stall = None
        self.refuse(None)

    def refuse(self, reason: str | None) -> None:
        """Begin no chat from now on, for this reason, or again (None)."""
        if self._stopping:
            return
        self._reason = reason
        if reason is None and self._timer is not None:
            self._timer.cancel()
            self._timer = None
        elif reason is not None and self._timer is None:
            limit: timedelta = self._context.settings.drain_limit
            self._timer = asyncio.get_running_loop().call_later(limit.total_seconds(), self._abort, reason)

    def stop(self) -> None:
        """Begin no chat any more: the worker stops. The time of those that run counts from now."""
        self.refuse(None)
        self.refuse("the worker is stopping")
        self._stopping = True

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer one request of a client."""
        path = scope.get("path")
        if scope["type"] != "http" or path not in (*CHAT_PATHS, MODELS_PATH):
            await _error(send, HTTPStatus.NOT_FOUND, f"{path} is not a path of this socket", code=None)
        elif path == MODELS_PATH and self._engine is None:
            await _json(send, HTTPStatus.OK, {"object": "list", "data": []})
        elif self._engine is None:
            await _error(
                send, HTTPStatus.SERVICE_UNAVAILABLE, self._without_engine(), code="model_not_loaded"
            )
        elif path != MODELS_PATH and self._reason is not None:
            await _error(send, HTTPStatus.SERVICE_UNAVAILABLE, self._reason, code="worker_busy")
        elif (cause := self._engine.died) is not None:
            await _died(send, cause)
        elif path == MODELS_PATH:
            await self._engine.serve(scope, receive, send)
        else:
            await self._answer(self._engine, scope, receive, send)

    async def _answer(self, engine: Engine, scope: Message, receive: Receive, send: Send) -> None:
        chat = _Chat(receive, send)
        self._chats.add(chat)
        self._show()
        try:
            await chat.run(engine, scope)
        finally:
            self._chats.discard(chat)
            self.answered += chat.complete
            self._ended_at = time.monotonic()
            self._changed.set()
            self._show()

    def _without_engine(self) -> str:
        state = self._context.view.snapshot.state
        if (paused := self._context.view.snapshot.paused) is not None:
            return f"the worker is paused: {paused}"
        return f"the worker is {state}" if state.startswith("loading") else "no model is loaded"

    def _abort(self, reason: str) -> None:
        for chat in self._chats:
            chat.abort(reason)

    async def _ended(self) -> None:
        while self._chats:
            self._changed.clear()
            await self._changed.wait()

    def _show(self) -> None:
        self._context.view.update(chats=len(self._chats))


class _Chat:
    """One chat: passes pieces on, knows for whom it waits, and can be aborted."""

    def __init__(self, receive: Receive, send: Send) -> None:
        self._receive, self._send = receive, send
        self._aborted: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._asked = False  # the whole request is here
        self._left = False
        self._sending = 0
        self._started = self._streams = False
        self.complete = False

    @property
    def waits_for_engine(self) -> bool:
        return self._asked and not self._sending

    def abort(self, reason: str) -> None:
        """End it; its client is shown the reason, as far as the answer has not begun."""
        if not self._aborted.done():
            self._aborted.set_result(reason)

    async def run(self, engine: Engine, scope: Message) -> None:
        """Have it answered. A client that gets no whole answer sees an error, or a connection that breaks."""
        handling = asyncio.ensure_future(engine.serve(scope, self._pass_in, self._pass_out))
        try:
            await asyncio.wait((handling, self._aborted), return_when=asyncio.FIRST_COMPLETED)
        finally:
            if not handling.done():
                if self._aborted.done():  # the disconnect says so to the handler
                    await asyncio.wait((handling,), timeout=DISCONNECT_GRACE)
                handling.cancel()
                await asyncio.wait((handling,))
        error = None if handling.cancelled() else handling.exception()
        if self.complete:
            return
        if (cause := engine.died) is not None or isinstance(error, EngineDied):
            await self._end(_words(cause or "it was closed"), code="engine_died")
        elif self._aborted.done():
            await self._end(self._aborted.result(), code="worker_busy")
        elif error is not None and not (self._started or self._left):
            log.error(
                "chat.failed path=%s error=%s", scope["path"], type(error).__name__
            )  # a text may hold a prompt
            await _error(self._send, HTTPStatus.INTERNAL_SERVER_ERROR, type(error).__name__, code=None)

    async def _end(self, message: str, *, code: str) -> None:
        """Say why there is no whole answer: as an error, or as the last event of a stream, which stays unfinished."""
        if not self._started:
            await _error(self._send, HTTPStatus.SERVICE_UNAVAILABLE, message, code=code)
        elif self._streams:
            event = b"data: " + msgspec.json.encode(_object(message, code=code)) + b"\n\n"
            await self._send({"type": "http.response.body", "body": event, "more_body": True})

    async def _pass_in(self) -> Message:
        getting = asyncio.ensure_future(self._receive())
        patience = None if self._asked else PATIENCE
        try:
            await asyncio.wait(
                (getting, self._aborted), timeout=patience, return_when=asyncio.FIRST_COMPLETED
            )
            message = getting.result() if getting.done() else {"type": "http.disconnect"}
        finally:
            getting.cancel()
        self._left |= message["type"] == "http.disconnect" and not self._aborted.done()
        if message["type"] == "http.request" and not message.get("more_body", False):
            self._asked = True
        return message

    async def _pass_out(self, message: Message) -> None:
        if self._aborted.done():
            raise ConnectionAbortedError
        if message["type"] == "http.response.start":
            self._started = True
            kinds = [value for name, value in message["headers"] if name.lower() == b"content-type"]
            self._streams = any(kind.startswith(b"text/event-stream") for kind in kinds)
        self._sending += 1
        try:
            async with asyncio.timeout(PATIENCE):
                await self._send(message)
        finally:
            self._sending -= 1
        if message["type"] == "http.response.body":
            self.complete = not message.get("more_body", False)


def _words(cause: str) -> str:
    return f"the engine died and is started again: {cause}"


async def _died(send: Send, cause: str) -> None:
    await _error(send, HTTPStatus.SERVICE_UNAVAILABLE, _words(cause), code="engine_died")


def _object(message: str, *, code: str | None) -> dict[str, object]:
    return {"error": {"message": message, "type": "server_error", "param": None, "code": code}}


async def _error(send: Send, status: HTTPStatus, message: str, *, code: str | None) -> None:
    retry = ((b"retry-after", b"%d" % RETRY_SECONDS),) if status == HTTPStatus.SERVICE_UNAVAILABLE else ()
    await _json(send, status, _object(message, code=code), *retry)


async def _json(send: Send, status: HTTPStatus, document: object, *headers: tuple[bytes, bytes]) -> None:
    body = msgspec.json.encode(document)
    own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": int(status), "headers": [*own, *headers]})
    await send({"type": "http.response.body", "body": body})
