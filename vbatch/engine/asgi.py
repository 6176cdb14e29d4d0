"""Call an ASGI application for one POST: no socket, no server, no framework.

It relies on one behaviour of vLLM's app, which is Starlette's: a handler that is still at work watches ``receive`` for
``http.disconnect`` and stops when it comes.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from dataclasses import replace
from http import HTTPStatus
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec

from vbatch.engine import Reply

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]
Headers = Iterable[tuple[bytes, bytes]]

DISCONNECT_GRACE = 1.0  # seconds for a handler to notice the disconnect, before it is cancelled


async def post(
    app: App,
    url: str,
    body: bytes,
    *,
    content_type: str = "application/json",
    headers: Headers = (),
    request_id: str | None = None,
) -> Reply:
    """Post a body to ``url`` (a path, perhaps with a query) and return the whole answer.

    Cancelling the call disconnects the handler and waits until it has ended, so that its sequence is aborted.
    An application that fails before it answers gives a 500, as it would behind a server.
    """
    exchange = Exchange(body)
    asked = scope(url, len(body), content_type, headers, request_id)
    handling = asyncio.ensure_future(app(asked, exchange.receive, exchange.send))
    try:
        await asyncio.wait((handling,))
    except asyncio.CancelledError:
        await _disconnect(exchange, handling)
        raise
    # An application may raise after it has answered, for its server to log: the answer stands.
    error = None if handling.cancelled() else handling.exception()
    if exchange.complete:
        return exchange.reply(request_id)
    reason = f"{type(error).__name__}: {error}" if error is not None else "no answer"
    return Reply(status=500, body=_server_error(reason), request_id=request_id)


async def serve(
    app: App, scope: Message, receive: Receive, send: Send, *, headers: Headers, check: Callable[[], None]
) -> None:
    """Have the application answer another client; ``headers`` take the place of that client's own.

    ``check`` is called before each piece is sent, and raises where nothing more may be.
    """

    async def checked(message: Message) -> None:
        check()
        await send(message)

    check()
    own = {b"authorization", *(name for name, _ in headers)}
    kept = [(name, value) for name, value in scope["headers"] if name.lower() not in own]
    await app({**scope, "headers": [*kept, *headers]}, receive, checked)
    check()


async def _disconnect(exchange: Exchange, handling: asyncio.Future[None]) -> None:
    exchange.disconnect()
    await asyncio.wait((handling,), timeout=DISCONNECT_GRACE)
    if not handling.done():
        handling.cancel()
        await asyncio.wait((handling,))
    if not handling.cancelled():
        handling.exception()  # asyncio warns of an exception that was never read


def scope(url: str, length: int, content_type: str, headers: Headers, request_id: str | None) -> Message:
    """Return the scope of a POST."""
    parts = urlsplit(url)
    sent = [
        (b"host", b"vbatch"),
        (b"content-type", content_type.encode("ascii")),
        (b"content-length", b"%d" % length),
        *headers,
    ]
    if request_id is not None:
        sent.append((b"x-request-id", request_id.encode("ascii")))
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "POST",
        "scheme": "http",
        "path": unquote(parts.path),
        "raw_path": parts.path.encode(),
        "query_string": parts.query.encode(),
        "root_path": "",
        "headers": sent,
        "client": None,
        "server": None,
        "state": {},
    }


class Exchange:
    """One request and its answer, as the application's ``receive`` and ``send`` see them.

    ``body`` is None where the application has it already.
    """

    __slots__ = ("_body", "_chunks", "_disconnected", "_headers", "_status", "complete")

    def __init__(self, body: bytes | None) -> None:
        self._body = body
        self._disconnected: asyncio.Future[None] | None = None
        self._status = 0
        self._headers: Headers = ()
        self._chunks: list[bytes] = []
        self.complete = False

    async def receive(self) -> Message:
        """Return the body, then wait for the disconnect."""
        if (body := self._body) is not None:
            self._body = None
            return {"type": "http.request", "body": body, "more_body": False}
        if self._disconnected is None:
            self._disconnected = asyncio.get_running_loop().create_future()
        # Several listeners may wait: cancelling one must not cancel the others.
        await asyncio.shield(self._disconnected)
        return {"type": "http.disconnect"}

    async def send(self, message: Message) -> None:
        """Receive the answer, piece by piece."""
        match message["type"]:
            case "http.response.start":
                self._status = message["status"]
                self._headers = message.get("headers", ())
            case "http.response.body":
                self._chunks.append(message.get("body", b""))
                self.complete = not message.get("more_body", False)

    def disconnect(self) -> None:
        """Report to the application that the client has disconnected."""
        self._body = None
        if self._disconnected is None:
            self._disconnected = asyncio.get_running_loop().create_future()
        if not self._disconnected.done():
            self._disconnected.set_result(None)

    def reply(self, request_id: str | None) -> Reply:
        """Return the answer, once it is complete."""
        retry_after = None
        for name, value in self._headers:
            if name == b"retry-after":
                retry_after = _seconds(value)
        body = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        return Reply(status=self._status, body=body, request_id=request_id, retry_after=retry_after)


def with_error_object(reply: Reply) -> Reply:
    """Give a url that vLLM's app does not route (404, 405) the error object that all its other errors have."""
    if reply.status < 400 or not reply.body.startswith(b'{"detail":'):
        return reply
    phrase = HTTPStatus(reply.status).phrase
    error = {
        "message": phrase,
        "type": phrase.replace(" ", "") + "Error",
        "param": None,
        "code": reply.status,
    }
    return replace(reply, body=msgspec.json.encode({"error": error}))


def _seconds(value: bytes) -> float | None:
    """Read a Retry-After header in its numeric form (RFC 9110, 10.2.3); a date is left alone."""
    try:
        return max(0.0, float(value))
    except ValueError:
        return None


def _server_error(reason: str) -> bytes:
    error = {"message": reason, "type": "InternalServerError", "param": None, "code": 500}
    return msgspec.json.encode({"error": error})
