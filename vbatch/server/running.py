"""Run the server: its address, its limits, its end at a signal."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from vbatch import batches
from vbatch.batches import files, serving
from vbatch.batches.serving import Running
from vbatch.config import Settings
from vbatch.errors import ConfigError
from vbatch.server.app import make_app
from vbatch.server.background import Background
from vbatch.server.context import Context
from vbatch.server.guard import is_loopback
from vbatch.server.keys import Keys
from vbatch.server.samples import Samples
from vbatch.server.starting import Starting

log = logging.getLogger(__name__)

HEAD_LIMIT = timedelta(seconds=20)  # a client may take as long to send the head of a request
STALL = timedelta(minutes=2)  # a client may take as long to read what was sent
HEAD_BYTES = 64 << 10
_IDLE = timedelta(seconds=30)  # an open connection without a request
_GOODBYE = timedelta(seconds=20)  # at a stop, for what is running


def check_address(settings: Settings, *, no_key: bool, key_is_chosen: bool) -> None:
    """Refuse an address that others can reach where no key was chosen. Raises ConfigError."""
    host = settings.serve.host
    if is_loopback(host):
        return
    if no_key:
        raise ConfigError(
            f"without a key, the server listens on loopback only, not on {host}", hint="vbatch serve --no-key"
        )
    if not key_is_chosen:
        raise ConfigError(
            f"other machines can reach {host}: choose a key first",
            hint='export VBATCH_API_KEY="$(vbatch serve --print-key)"',
        )


def listen(settings: Settings) -> socket.socket:
    """Return the open socket. Raises ConfigError where the address cannot be had."""
    host, port = settings.serve.host, settings.serve.port
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listener = socket.socket(family, kind, protocol)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(place)
        listener.listen(2048)
    except OSError as error:
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}", hint=f"vbatch serve --port {port + 1}"
        ) from None
    return listener


def address(listener: socket.socket) -> str:
    """Return the URL at which this server answers."""
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    return f"http://{shown}:{port}"


def serve(settings: Settings, listener: socket.socket, keys: Sequence[str]) -> None:
    """Answer requests until SIGTERM, SIGHUP or Ctrl-C, and let what runs end; with 503 while there is no database.

    What is done behind has a store of its own, which waits as long as it takes; a request waits for a moment.
    """
    stop = threading.Event()
    folder = files.folder_of(settings.data_dir)
    url = settings.store_url
    with (
        serving.held(folder, Running(url=address(listener), asks_for_key=bool(keys))),
        batches.open_for_worker(url, stop=stop, on_wait=lambda _reason, _seconds: None) as patient,
        batches.open_for_requests(url) as store,
    ):
        samples = Samples()
        behind = Background(patient, settings, stop, samples)

        @contextmanager
        def opening() -> Iterator[None]:
            patient.prepare()
            store.prepare()
            with behind.running():
                log.info("server.ready url=%s", address(listener))
                yield

        context = Context(store=store, settings=settings, poke=behind.poke, samples=samples)
        starting = Starting(opening)
        server = _server(context, keys, starting)
        log.info("server.listening url=%s", address(listener))
        starting.begin(failed=server.end)
        try:
            asyncio.run(server.serve(sockets=[listener]))
        finally:
            stop.set()
            context.close()
            starting.end()
            log.info("server.stopped")


def _server(context: Context, keys: Sequence[str], starting: Starting) -> _Server:
    settings = context.settings
    hosts = {settings.serve.host, socket.gethostname(), *settings.serve.allowed_hosts}
    app = make_app(
        context,
        keys=Keys(keys),
        hosts={host.lower() for host in hosts},
        open_paths=_open(settings),
        ready=lambda: starting.ready,
    )
    return _Server(
        uvicorn.Config(
            app,
            http=Protocol,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=settings.serve.connections,
            timeout_keep_alive=int(_IDLE.total_seconds()),
            timeout_graceful_shutdown=int(_GOODBYE.total_seconds()),
            h11_max_incomplete_event_size=HEAD_BYTES,
        )
    )


def _open(settings: Settings) -> tuple[str, ...]:
    return ("/metrics",) if is_loopback(settings.serve.host) else ()


class _Server(uvicorn.Server):
    """uvicorn's server, which ends with exit code 0 at a signal, as a worker does."""

    def end(self) -> None:
        """Stop as at a signal; any thread may call it."""
        self.should_exit = True

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Stop at a signal; the old handlers come back at the end."""
        signals = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        before = {number: signal.signal(number, self.handle_exit) for number in signals}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class Protocol(H11Protocol):
    """HTTP/1.1 of uvicorn, with a limit on how long the head of a request, and reading an answer, may take.

    Without them a client that sends a byte a minute, or stops to read, holds its connection for ever.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _write_timer: asyncio.TimerHandle | None = None

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
