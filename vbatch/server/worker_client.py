"""One HTTP request to a worker's Unix socket, its answer piece by piece. Each has a connection of its own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import h11

from vbatch.system import sockets

Headers = Sequence[tuple[bytes, bytes]]

_PIECE = 64 << 10
_HEAD = 64 << 10


class WorkerGone(Exception):
    """The worker does not listen, or has broken off its answer."""


@dataclass(slots=True)
class Answer:
    """An answer whose head is here; ``pieces`` are its body."""

    status: int
    headers: Headers
    _connection: h11.Connection
    _reader: asyncio.StreamReader

    async def pieces(self) -> AsyncIterator[bytes]:
        """Yield the body as it comes. Raises WorkerGone where it ends too early."""
        while True:
            match await _event(self._connection, self._reader):
                case h11.Data(data=data):
                    yield bytes(data)
                case h11.EndOfMessage():
                    return
                case _:
                    raise WorkerGone


@asynccontextmanager
async def ask(
    path: Path, method: str, target: str, *, headers: Headers = (), body: bytes = b""
) -> AsyncIterator[Answer]:
    """Send a request to the socket at ``path``; leaving the context ends it, and the worker aborts what it does for it.

    Raises WorkerGone.
    """
    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_HEAD)
    head = [(b"host", b"worker"), *headers, (b"content-length", b"%d" % len(body)), (b"connection", b"close")]
    try:
        with sockets.address(path) as short:
            reader, writer = await asyncio.open_unix_connection(short)
    except OSError as error:
        raise WorkerGone from error
    try:
        request = h11.Request(method=method, target=target, headers=head)
        writer.write(connection.send(request) or b"")
        writer.write(connection.send(h11.Data(data=body)) or b"")
        writer.write(connection.send(h11.EndOfMessage()) or b"")
        # A worker that refuses at once does not read the body, but its answer is there.
        with suppress(ConnectionError):
            await writer.drain()
        started = await _event(connection, reader)
        while isinstance(started, h11.InformationalResponse):
            started = await _event(connection, reader)
        if not isinstance(started, h11.Response):
            raise WorkerGone
        yield Answer(started.status_code, list(started.headers), connection, reader)
    finally:
        writer.close()


async def _event(connection: h11.Connection, reader: asyncio.StreamReader) -> object:
    try:
        while (event := connection.next_event()) is h11.NEED_DATA:
            connection.receive_data(await reader.read(_PIECE))
    except (h11.RemoteProtocolError, OSError) as error:
        raise WorkerGone from error
    return event
