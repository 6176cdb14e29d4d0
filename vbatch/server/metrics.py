"""``/metrics``: what Prometheus sees of the server. Beyond loopback it needs the key."""

from __future__ import annotations

from collections.abc import Sequence

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from vbatch import batches
from vbatch.batches import Worker, files
from vbatch.server.context import Context, context_of


class _Figures(Collector):
    """The figures of one moment."""

    def __init__(self, figures: list[Metric]) -> None:
        self._figures = figures

    def collect(self) -> list[Metric]:
        """Return them."""
        return self._figures


def _look(context: Context) -> list[Metric]:
    room = files.usage(context.store, context.files)
    queue = batches.queue_progress(context.store)
    workers = batches.live_workers(context.store)
    quota = context.settings.serve.files_quota
    figures = [
        ("up", "1 while the server answers.", 1),
        ("workers", "Workers that are alive.", len(workers)),
        ("batches_unfinished", "Batches that have not ended.", queue.unfinished_batches),
        (
            "batches_validating",
            "Batches that wait for their validation.",
            len(batches.waiting(context.store)),
        ),
        ("uploads", "Files that are coming in.", context.intake.running),
        ("files_bytes", "What all files take.", room.files),
        ("disk_free_bytes", "What is free on the disk of the files.", room.free),
        *([("files_quota_bytes", "What all files may take.", quota)] if quota is not None else []),
    ]
    gauges = [GaugeMetricFamily(f"vbatch_server_{name}", text, value=value) for name, text, value in figures]
    return [*gauges, _silence(workers)]


def _silence(workers: Sequence[Worker]) -> Metric:
    """Return how long each worker of every host has been silent; of a host that is off too, until it is found dead."""
    family = GaugeMetricFamily(
        "vbatch_worker_silent_seconds",
        "Time since the last heartbeat of a worker, by the database's clock.",
        labels=["host", "gpu", "worker"],
    )
    for worker in workers:
        host = worker.identity.host.partition("/")[0]
        family.add_metric([host, ",".join(worker.gpus), worker.id], worker.silent.total_seconds())
    return family


async def metrics(request: Request) -> Response:
    """Answer the figures of now."""
    context = context_of(request)
    registry = CollectorRegistry()
    registry.register(_Figures(await context.in_store(_look, context)))
    return Response(generate_latest(registry), headers={"content-type": CONTENT_TYPE_PLAIN_0_0_4})


routes = [Route("/metrics", metrics)]
