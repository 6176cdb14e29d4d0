"""What Prometheus sees of a worker: its figures and vLLM's own on ``/metrics``, its health on ``/health``.

Served from a thread of its own, on the loopback interface: a worker whose loop hangs still answers, and
reports it. Nothing is counted here; each scrape asks the worker for its figures.
"""

from __future__ import annotations

import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

from prometheus_client import REGISTRY, CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from prometheus_client.registry import Collector

from vbatch import __version__

log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A worker at one moment. Counts are since its start, except those of the queue; sizes are bytes.

    ``outage_seconds`` is how long the store has been unreachable, 0 while it answers. ``healthy`` is false
    for a worker that hangs; waiting for the store or for work is healthy. What cannot be known is None or
    left out.
    """

    healthy: bool
    state: str
    model: str | None
    queue_unfinished: int
    queue_finished: int
    running: int
    chats: int = 0
    completed: int
    failed: int
    cut_off: int = 0
    empty: int = 0
    blocked: int = 0
    paused: bool = False
    prompt_tokens: int
    completion_tokens: int
    engine_loads: int
    engine_crashes: int
    outages: int
    outage_seconds: float
    progress_age_seconds: float
    gpu_memory: Mapping[tuple[str, str], int] = field(default_factory=dict)
    disk_free: Mapping[str, int] = field(default_factory=dict)


class Exposition:
    """Serves one worker's figures while it is open: ``with Exposition(port, figures):``."""

    def __init__(self, port: int, figures: Callable[[], Figures]) -> None:
        self._figures = figures
        self._collector = _WorkerCollector(figures)
        self._server = _Server((LOOPBACK, port), _Handler)
        self._server.registry = _registry()
        self._server.figures = figures
        self._thread = threading.Thread(target=self._server.serve_forever, name="metrics", daemon=True)

    @property
    def port(self) -> int:
        """Where it listens: the port asked for, or the one that the system chose for 0."""
        return int(self._server.server_address[1])

    def __enter__(self) -> Self:
        self._server.registry.register(self._collector)
        self._thread.start()
        log.info("metrics.serving url=%s", f"http://{LOOPBACK}:{self.port}/metrics")
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._server.registry.unregister(self._collector)


def _registry() -> CollectorRegistry:
    """Return the registry that vLLM's metrics are in: the process's, or the folder that processes share."""
    if "PROMETHEUS_MULTIPROC_DIR" not in os.environ:
        return REGISTRY
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)  # the start time, which an alert asks for
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]  # it has no types
    return registry


class _WorkerCollector(Collector):
    """Turns figures into metrics at each scrape."""

    def __init__(self, figures: Callable[[], Figures]) -> None:
        self._figures = figures

    def describe(self) -> list[Metric]:
        """Return no names, so that registering does not ask for figures before there are any."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield every metric of vbatch's own."""
        now = self._figures()
        yield InfoMetricFamily("vbatch_worker", "Version, kind of state, model.", value=_labels(now))
        yield _gauge("vbatch_up", "1 while the worker makes progress or has nothing to do.", int(now.healthy))
        yield _gauge(
            "vbatch_paused", "1 while the worker rests, or will when its requests end.", int(now.paused)
        )
        yield _gauges(
            "vbatch_queue_requests",
            "Requests of the unfinished batches.",
            "state",
            {"unfinished": now.queue_unfinished, "finished": now.queue_finished},
        )
        yield _gauge("vbatch_requests_running", "Requests that the engine has now.", now.running)
        yield _gauge("vbatch_chats_running", "Chats that run beside them.", now.chats)
        yield _counters(
            "vbatch_requests",
            "Results recorded by this worker.",
            "outcome",
            {"completed": now.completed, "failed": now.failed},
        )
        yield _counters(
            "vbatch_tokens",
            "Tokens of the recorded results.",
            "kind",
            {"prompt": now.prompt_tokens, "completion": now.completion_tokens},
        )
        yield _counters(
            "vbatch_answers",
            "Answers among them that are probably not what was asked for.",
            "kind",
            {"cut_off": now.cut_off, "empty": now.empty},
        )
        yield _gauge(
            "vbatch_models_blocked",
            "Models that cannot be loaded, or not for an endpoint; requests wait.",
            now.blocked,
        )
        yield _counter("vbatch_engine_loads", "Models loaded.", now.engine_loads)
        yield _counter("vbatch_engine_deaths", "Engines that crashed under requests.", now.engine_crashes)
        yield _counter("vbatch_store_outages", "Times that the store was unreachable.", now.outages)
        yield _gauge(
            "vbatch_store_outage_seconds", "How long the store has been unreachable.", now.outage_seconds
        )
        yield _gauge(
            "vbatch_progress_age_seconds", "Time since a result was recorded.", now.progress_age_seconds
        )
        memory = GaugeMetricFamily(
            "vbatch_gpu_memory_bytes", "Memory of the worker's GPUs.", labels=["gpu", "kind"]
        )
        for labels, value in now.gpu_memory.items():
            memory.add_metric(labels, value)
        if now.gpu_memory:
            yield memory
        yield _gauges("vbatch_disk_free_bytes", "Free space where the worker writes.", "place", now.disk_free)


# The words that a worker's state begins with; what follows may be any model's name, which would make a
# label without bounds.
STATES = frozenset({"starting", "ready", "idle", "working", "loading", "unloading", "waiting", "paused"})


def _labels(now: Figures) -> dict[str, str]:
    state = now.state.partition(" ")[0]
    return {
        "version": __version__,
        "state": state if state in STATES else "other",
        "model": now.model or "",
    }


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(name, text, value=value)


def _counter(name: str, text: str, value: float) -> Metric:
    return CounterMetricFamily(name, text, value=value)


def _gauges(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def _counters(name: str, text: str, label: str, values: Mapping[str, float]) -> Metric:
    family = CounterMetricFamily(name, text, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


class _Server(ThreadingHTTPServer):
    """Answers each request in a thread, none of which keeps the worker from ending."""

    daemon_threads = True
    registry: CollectorRegistry
    figures: Callable[[], Figures]

    def handle_error(self, *_: object) -> None:
        """Keep a client that hangs up out of the worker's terminal and journal."""
        log.debug("metrics.unanswered", exc_info=True)


class _Handler(BaseHTTPRequestHandler):
    """Two pages, read only."""

    server: _Server
    timeout = 10.0  # seconds that a client may take to ask

    def do_GET(self) -> None:
        if not _is_loopback(self.headers.get("Host", "")):  # a page in a browser that has rebound its name
            self._answer(HTTPStatus.MISDIRECTED_REQUEST, "text/plain", b"this is no such host\n")
            return
        match self.path.partition("?")[0]:
            case "/metrics":
                # Whatever is accepted: the client's OpenMetrics writes vLLM's ``vllm:`` as ``vllm_`` (0.26).
                self._answer(HTTPStatus.OK, CONTENT_TYPE_PLAIN_0_0_4, generate_latest(self.server.registry))
            case "/health":
                now = self.server.figures()
                status = HTTPStatus.OK if now.healthy else HTTPStatus.SERVICE_UNAVAILABLE
                self._answer(status, "application/json", _health(now))
            case _:
                self._answer(HTTPStatus.NOT_FOUND, "text/plain", b"/metrics or /health\n")

    def log_message(self, *_: object) -> None:
        """Keep scrapes out of the journal."""

    def _answer(self, status: HTTPStatus, content_type: str, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def _is_loopback(host: str) -> bool:
    """Return whether a Host header names this machine's loopback, with a port or without; HTTP/1.0 needs none."""
    name = host.rpartition(":")[0] if re.search(r":\d+$", host) else host
    return (
        name.strip("[]").lower() in ("", "localhost", "::1")
        or re.fullmatch(r"127(\.\d+){3}", name) is not None
    )


def _health(now: Figures) -> bytes:
    document = {
        "status": "ok" if now.healthy else "hung",
        "state": now.state,
        "paused": now.paused,
        "model": now.model,
        "unfinished": now.queue_unfinished,
        "progress_age_seconds": round(now.progress_age_seconds, 1),
        "store_outage_seconds": round(now.outage_seconds, 1),
    }
    return json.dumps(document).encode() + b"\n"
