"""A TCP proxy before PostgreSQL that misbehaves on demand: the network and the restarts of real life."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from enum import Enum, auto

# An ErrorResponse message (protocol 3.0, "Message Formats"): severity, SQLSTATE 57P03, text.
_FIELDS = b"SFATAL\0VFATAL\0C57P03\0Mthe database system is starting up\0\0"
STARTING_UP = b"E" + (len(_FIELDS) + 4).to_bytes(4, "big") + _FIELDS


class Mood(Enum):
    """What the proxy does with a connection or a message."""

    FORWARD = auto()
    ACCEPT_AND_CLOSE = auto()  # Docker's proxy before the container is up: the incident's own text
    ACCEPT_AND_HANG = auto()
    STARTING_UP = auto()
    DROP_COMMIT_ANSWER = auto()  # the next COMMIT reaches the server, its answer never comes back


class Proxy:
    """Forwards 127.0.0.1:port to a server's Unix socket or TCP address."""

    def __init__(self, upstream: str | tuple[str, int]) -> None:
        self._upstream = upstream
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.mood = Mood.FORWARD
        self.dropped_commits = 0
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop listening and cut every connection."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self.cut()

    def cut(self) -> None:
        """Cut every open connection, as a restarted router does."""
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client:
            match self.mood:
                case Mood.ACCEPT_AND_CLOSE:
                    return
                case Mood.ACCEPT_AND_HANG:
                    self._open.add(client)
                    with suppress(OSError):
                        while client.recv(65536):
                            pass
                    return
                case Mood.STARTING_UP:
                    with suppress(OSError):
                        request = client.recv(65536)
                        if request[4:8] in (b"\x04\xd2\x16\x2f", b"\x04\xd2\x16\x30"):  # SSL or GSS request
                            client.sendall(b"N")
                            client.recv(65536)
                        client.sendall(STARTING_UP)
                    return
                case _:
                    self._forward(client)

    def _forward(self, client: socket.socket) -> None:
        family = socket.AF_UNIX if isinstance(self._upstream, str) else socket.AF_INET
        with socket.socket(family) as server:
            try:
                server.connect(self._upstream)
            except OSError:
                return
            self._open |= {client, server}
            back = threading.Thread(target=_pump, args=(server, client), daemon=True)
            back.start()
            with suppress(OSError):
                while data := client.recv(65536):
                    if self.mood is Mood.DROP_COMMIT_ANSWER and b"COMMIT" in data:
                        self.mood = Mood.FORWARD
                        self.dropped_commits += 1
                        client.shutdown(socket.SHUT_RDWR)
                        server.sendall(data)
                        back.join(60)  # it ends when the answer has come, for it cannot hand it on
                        break
                    server.sendall(data)
            self._open -= {client, server}
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)


def _pump(source: socket.socket, target: socket.socket) -> None:
    with suppress(OSError):
        while data := source.recv(65536):
            target.sendall(data)
    with suppress(OSError):
        target.shutdown(socket.SHUT_RDWR)


@contextmanager
def proxy(upstream: str | tuple[str, int]) -> Iterator[Proxy]:
    """A proxy for one test."""
    running = Proxy(upstream)
    try:
        yield running
    finally:
        running.close()
