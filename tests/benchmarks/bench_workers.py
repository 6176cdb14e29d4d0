"""Eight workers on one store against one worker: requests a second on the echo engine, and the ratio.

    python -m tests.benchmarks.bench_workers [--requests N] [--rounds N] [--latency MS]

Both stores, alternately. Clocked is from the first result to the end of the batch, so that starting processes
is no part of it. With ``--latency 0`` the echo engine answers at once: then one worker alone keeps the store
busy, and what is compared is how the workers stand in each other's way.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from tests.rigs.commands import chats
from tests.rigs.postgres import Postgres
from tests.rigs.queued import queued
from tests.rigs.waiting import until
from tests.rigs.workers import kill, start_worker
from vbatch.store import Store

MANY = 8


def main() -> None:
    """Run the benchmark and print a line a store."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--latency", type=int, default=50, help="ms that the engine takes for an answer")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = Postgres(folder / "server")
        server.start()
        try:
            for url in (f"sqlite:///{folder / 'vbatch.db'}", server.url()):
                _compare(
                    url, folder, requests=options.requests, rounds=options.rounds, latency_ms=options.latency
                )
        finally:
            server.stop()


def _compare(url: str, folder: Path, *, requests: int, rounds: int, latency_ms: int) -> None:
    store = Store(url)
    store.prepare()
    kind = "SQLite" if store.file is not None else "PostgreSQL"
    rates: dict[int, list[float]] = {1: [], MANY: []}
    for round_ in range(rounds):
        for workers, seen in rates.items():
            work = folder / f"{kind}-{round_}-{workers}"
            work.mkdir()
            seen.append(_rate(store, work, requests=requests, workers=workers, latency_ms=latency_ms))
    store.close()
    one, many = (statistics.median(seen) for seen in rates.values())
    print(
        f"{kind:10} 1 worker {one:,.0f}/s  {MANY} workers {many:,.0f}/s  ratio {many / one:.2f}", flush=True
    )


def _rate(store: Store, folder: Path, *, requests: int, workers: int, latency_ms: int) -> float:
    """Return how many requests a second so many workers answer together."""
    batch = queued(store, folder, chats(requests))
    running = [start_worker(batch.url, folder, echo_latency_ms=latency_ms) for _ in range(workers)]
    try:
        until(lambda: batch.batch.counts.completed > 0, pause=0.01)
        began, before = time.monotonic(), batch.batch.counts.completed
        until(lambda: batch.batch.counts.completed == requests, progress=lambda: batch.batch.counts.completed)
        return (requests - before) / (time.monotonic() - began)
    finally:
        for worker in running:
            kill(worker)


if __name__ == "__main__":
    main()
