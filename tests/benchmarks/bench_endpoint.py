"""What the way over HTTP costs: CPU time of the worker per request, through ``endpoint`` and in-process echo.

python -m tests.benchmarks.bench_endpoint [--requests 20000] [--rounds 3]

One file, a SQLite store on disk, workers as processes of their own, alternating: first in-process, then through the
server, and again. The server runs in another process, so that its time is not the worker's. Then the throughput with
one of two servers dead, in relation to both.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.rigs.commands import chats
from tests.rigs.hostile import Hostile
from tests.rigs.queued import queued
from tests.rigs.workers import settings_in
from vbatch.config.endpoints import EndpointSettings
from vbatch.store import WORKER_PATIENCE, Store
from vbatch.worker import Stop, View, run


def _serve(latency: float, capacity: int | None) -> None:
    """Be a server until standard input ends."""
    with Hostile("echo", latency=latency, capacity=capacity, queues=capacity is not None) as server:
        print(server.url, flush=True)
        sys.stdin.read()


def _server(latency: float = 0.0, capacity: int | None = None) -> tuple[subprocess.Popen[str], str]:
    code = f"from tests.benchmarks import bench_endpoint as b; b._serve({latency}, {capacity})"
    process = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    return process, process.stdout.readline().strip()


@contextmanager
def serving() -> Iterator[str]:
    """Keep a quick server running; yield its URL."""
    process, url = _server()
    try:
        yield url
    finally:
        process.kill()
        process.wait()


def _worker(requests: int, urls: tuple[str, ...]) -> tuple[float, float]:
    """Answer one batch in a process of its own; return its CPU and its wall seconds."""
    reader, writer = os.pipe()
    if (pid := os.fork()) == 0:
        _answer(requests, urls, writer)
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(pid, 0)
    cpu, wall = map(float, text.split())
    return cpu, wall


def _answer(requests: int, urls: tuple[str, ...], writer: int) -> None:
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        url = f"sqlite:///{folder}/vbatch.db"
        store = Store(url)
        store.prepare()
        batch = queued(store, folder, chats(requests))
        endpoints = {
            f"s{number}": EndpointSettings.model_validate({"url": each}) for number, each in enumerate(urls)
        }
        settings = settings_in(folder, engine="endpoint" if urls else "echo", endpoints=endpoints)
        started, before = time.perf_counter(), _cpu()
        stop = Stop()
        of_worker = Store(url, patience=WORKER_PATIENCE, stop=stop.store)
        run(of_worker, settings, view=View(), stop=stop, drain=True)
        took, used = time.perf_counter() - started, _cpu() - before
        assert not batch.lines().lost(chats(requests))
        os.write(writer, f"{used} {took}".encode())


def _cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Measure, and print one line for each way."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    with serving() as url:
        ways: dict[str, tuple[str, ...]] = {"echo, in-process": (), "echo, through endpoint": (url,)}
        figures: dict[str, list[float]] = {way: [] for way in ways}
        for _ in range(given.rounds):
            for way, urls in ways.items():
                cpu, wall = _worker(given.requests, urls)
                figures[way].append(cpu * 1000 / given.requests)
                print(
                    f"{way}: {figures[way][-1]:.3f} ms of CPU a request, {given.requests / wall:,.0f}/s",
                    flush=True,
                )
    for way, found in figures.items():
        print(
            f"{way}: median {median(found):.3f} ms of CPU a request ({len(found)} runs of {given.requests:,})"
        )
    slow = [_server(0.05, 16) for _ in range(2)]
    try:
        count = min(given.requests, 4000)
        _, both = _worker(count, tuple(each for _, each in slow))
        slow[1][0].kill()
        slow[1][0].wait()
        _, one = _worker(count, tuple(each for _, each in slow))
    finally:
        for process, _ in slow:
            process.kill()
    print(
        f"two servers of 16 at once and 50 ms: {count / both:,.0f}/s; one of them dead: {count / one:,.0f}/s"
    )


if __name__ == "__main__":
    main()
