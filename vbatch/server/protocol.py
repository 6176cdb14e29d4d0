"""HTTP/1.1 of uvicorn, with limits of time, and with refusals of its own in OpenAI's shape."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from http import HTTPStatus
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from vbatch.server import errors
from vbatch.server.errors import ApiError

HEAD_LIMIT = timedelta(seconds=20)  # a client may take as long to send the head of a request
STALL = timedelta(minutes=2)  # a client may take as long to read what was sent
_AGAIN = 5  # seconds


class Protocol(H11Protocol):
    """One connection.

    Without limits a client that sends a byte a minute, or stops to read, holds its connection for ever. uvicorn's own
    answers, to what is no HTTP and to one connection too many, are plain text, which clients of OpenAI cannot read.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._most, self.limit_concurrency = self.limit_concurrency, None
        self._answer, self.app = self.app, self._unless_full

    async def _unless_full(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or refuse it where too many connections are open."""
        if self._most is None or max(len(self.connections), len(self.tasks)) <= self._most:
            await self._answer(scope, receive, send)
            return
        refusal = ApiError(
            503,
            "Too many connections are open; try again in a moment.",
            code="too_many_connections",
            retry_after=_AGAIN,
            close=True,
        )
        await errors.response(refusal)(scope, receive, send)

    def send_400_response(self, msg: str) -> None:
        """Refuse what is no request, and end the connection; after the head of an answer, end it alone."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            refusal = errors.response(ApiError(400, msg, code="invalid_http", close=True))
            head = h11.Response(
                status_code=400, headers=refusal.raw_headers, reason=HTTPStatus.BAD_REQUEST.phrase.encode()
            )
            for event in (head, h11.Data(data=bytes(refusal.body)), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def pause_writing(self) -> None:
        """Start the time of a client that does not read."""
        super().pause_writing()
        self._write_timer = self.loop.call_later(STALL.total_seconds(), self.transport.abort)

    def resume_writing(self) -> None:
        """Stop it: the client reads."""
        super().resume_writing()
        self._stop_write_timer()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the time of the first head."""
        super().connection_made(transport)
        self._await_head()

    def data_received(self, data: bytes) -> None:
        """Stop the time when a head is whole, start it when another one has begun."""
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._head_timer is None:
            self._await_head()

    def on_response_complete(self) -> None:
        """Leave an idle connection to its own limit."""
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the times."""
        self._stop_timer()
        self._stop_write_timer()
        super().connection_lost(exc)

    def _await_head(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(HEAD_LIMIT.total_seconds(), self._too_slow)

    def _too_slow(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _stop_write_timer(self) -> None:
        if self._write_timer is not None:
            self._write_timer.cancel()
            self._write_timer = None
