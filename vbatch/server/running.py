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

import uvicorn

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
from vbatch.server.protocol import Protocol
from vbatch.server.samples import Samples
from vbatch.server.starting import Starting

log = logging.getLogger(__name__)

_HEAD_BYTES = 64 << 10
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
        behind: set[Background] = set()

        def poke() -> None:
            for each in tuple(behind):
                each.poke()

        @contextmanager
        def opening(first: bool) -> Iterator[None]:
            patient.prepare()
            store.prepare()
            here = Background(patient, settings, samples, replaced=starting.reopen)
            with here.running(sweep=first):
                behind.add(here)
                log.info("server.ready url=%s", address(listener))
                try:
                    yield
                finally:
                    behind.remove(here)

        context = Context(store=store, settings=settings, poke=poke, samples=samples)
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
            h11_max_incomplete_event_size=_HEAD_BYTES,
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
