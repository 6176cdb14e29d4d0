"""The most memory that commands and a worker have, whatever the number and the size of requests and answers.

    python -m tests.benchmarks.bench_memory [--requests 1000000] [--case small] [--case bodies] [--case answers]
    python -m tests.benchmarks.bench_memory --requests 3000000 --case small --database postgresql --snapshot

Cases: ``small`` is many short requests, ``bodies`` 150 of 12 MiB (a third of them fails, for ``retry``), ``answers`` 12
short ones with answers of 100 MiB, as embeddings may have. The engine echoes in the worker's own process, so what it
holds counts too. A figure is the peak of one real process; that of a worker is taken while it answers, and while it
writes the files. PostgreSQL is the tests' own; the memory of its server is not counted.

``--snapshot`` opens a REPEATABLE READ transaction before the worker starts and keeps it open until the worker has
ended: no row that changes meanwhile can be removed. What a claim and a save cost at first and at last is printed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any

import msgspec
import psycopg

from tests.rigs.postgres import Postgres
from tests.rigs.workers import settings_in
from vbatch.engine import Loaded, Reply
from vbatch.engine.echo import EchoEngine
from vbatch.engine.kinds import KINDS, Kind, Load
from vbatch.protocol import BatchStatus
from vbatch.store import READ_PATIENCE, WORKER_PATIENCE, Store, catalog, queue

MIB = 1 << 20
LOOK = 0.05  # seconds between two looks at a process
LARGE = "large"  # the engine that answers with as many MiB as dimensions says
CASES = ("small", "bodies", "answers")
ENDS = 100  # calls at the beginning and at the end whose median is printed


class LargeAnswers(EchoEngine):
    """Answers with as many MiB as ``dimensions`` says."""

    async def post(self, _url: str, body: bytes) -> Reply:
        """Answer one request."""
        size: int = msgspec.json.decode(body)["dimensions"] * MIB
        await self._wait(0.2)
        self.progress += 1
        return Reply(status=200, body=b'{"text":"' + b"x" * size + b'"}', request_id="large")


async def _load(load: Load) -> Loaded:
    return LargeAnswers(load.model, load.echo_latency)


def work(url: str, folder: Path, engine: str) -> None:
    """Be a worker until the queue is empty."""
    from vbatch.worker import Stop, View, run

    KINDS[LARGE] = Kind(
        name=LARGE, title=LARGE, serves=lambda _: True, load=_load, needs_gpu=False, needs_files=False
    )
    took: dict[str, list[float]] = {"waiting": [], "claim": [], "flush": []}
    for name, calls in took.items():
        setattr(queue, name, _timed(getattr(queue, name), calls))
    stop = Stop()
    store = Store(url, patience=WORKER_PATIENCE, stop=stop.store)
    run(store, settings_in(folder, engine=engine), view=View(), stop=stop, drain=True)
    for name, calls in took.items():
        first, last = statistics.median(calls[:ENDS]), statistics.median(calls[-ENDS:])
        print(
            f"    {name:8} {len(calls):7,} calls, {first:6.2f} ms at first, {last:6.2f} ms at last",
            flush=True,
        )


def _timed(call: Callable[..., Any], took: list[float]) -> Callable[..., Any]:
    def timed(*args: Any, **kwargs: Any) -> Any:
        began = time.perf_counter()
        try:
            return call(*args, **kwargs)
        finally:
            took.append((time.perf_counter() - began) * 1000)

    return timed


def lines(case: str, requests: int) -> Iterator[str]:
    """Yield the lines of an input file."""
    url = "embeddings" if case == "answers" else "chat/completions"
    head = f'{{"custom_id":"request-%d","method":"POST","url":"/v1/{url}","body":{{"model":"echo",'
    for number in range({"small": requests, "bodies": 150, "answers": 12}[case]):
        match case:
            case "small":
                rest = '"messages":[{"role":"user","content":"The quick brown fox jumps over the lazy dog."}]'
            case "bodies":
                fault = ',"metadata":{"vbatch_echo":"error400"}' if number % 3 == 0 else ""
                rest = f'"messages":[{{"role":"user","content":"{"x" * (12 * MIB)}"}}]{fault}'
            case _:
                rest = '"dimensions":100,"input":"hello"'
        yield head % number + rest + "}}\n"


def peak_of(process: subprocess.Popen[bytes]) -> int:
    """Return the peak of a process so far, in bytes; 0 when it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{process.pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def command(*arguments: str | Path, url: str, folder: Path) -> int:
    """Run a command of vbatch's and return its peak."""
    environment = os.environ | {
        "VBATCH_DATABASE_URL": url,
        "HOME": str(folder),
        "XDG_STATE_HOME": str(folder),
    }
    peak = 0
    with subprocess.Popen(
        [sys.executable, "-m", "vbatch", *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as process:
        while process.poll() is None:
            peak = max(peak, peak_of(process))
            time.sleep(LOOK)
    if process.returncode:
        raise SystemExit(process.returncode)
    return peak


def worker(url: str, folder: Path, engine: str) -> tuple[int, int]:
    """Run a worker until the queue is empty; return its peaks while it answers, and while it writes the files."""
    store = Store(url, patience=READ_PATIENCE)
    answering = writing = 0
    arguments = ["--worker", url, "--folder", str(folder), "--engine", engine]
    with subprocess.Popen([sys.executable, "-m", "tests.benchmarks.bench_memory", *arguments]) as process:
        looked = 0.0
        while process.poll() is None:
            if not writing:
                answering = max(answering, peak_of(process))
                if time.monotonic() - looked > 1:
                    looked = time.monotonic()
                    if catalog.recent(store, limit=1)[0].status is not BatchStatus.IN_PROGRESS:
                        Path(f"/proc/{process.pid}/clear_refs").write_text("5")  # begin a new peak
                        writing = peak_of(process)
            else:
                writing = max(writing, peak_of(process))
            time.sleep(LOOK)
    store.close()
    if process.returncode:
        raise SystemExit(process.returncode)
    return answering, writing


def measure(case: str, requests: int, url: str, folder: Path, *, snapshot: bool = False) -> None:
    """Print the peaks of one case on one database, with a ``snapshot`` of it that stays open beside the worker."""
    kind = "SQLite" if url.startswith("sqlite") else "PostgreSQL"
    source = folder / "input.jsonl"
    with source.open("w") as file:
        file.writelines(lines(case, requests))
    Store(url).prepare()

    def show(what: str, peak: int) -> None:
        print(f"{kind:10} {case:8} {what:16} {peak / MIB:6,.0f} MiB", flush=True)

    show("submit", command("submit", source, "--quiet", url=url, folder=folder))
    began = time.monotonic()
    with ExitStack() as open_beside:
        if snapshot:
            reader = open_beside.enter_context(psycopg.connect(url))
            reader.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
            reader.execute("SELECT count(*) FROM batch")
        answering, writing = worker(url, folder, LARGE if case == "answers" else "echo")
    show("worker, answering", answering)
    show("worker, writing", writing)
    print(f"{kind:10} {case:8} {timedelta(seconds=round(time.monotonic() - began))} of work", flush=True)
    store = Store(url)
    (batch,) = catalog.recent(store, limit=1)
    store.close()
    Path(batch.output_path).unlink()
    copy = folder / "copy.jsonl"
    show("results", command("results", batch.id, "-o", copy, url=url, folder=folder))
    copy.unlink()
    if case == "bodies":
        show("retry", command("retry", batch.id, "-o", folder / "again.jsonl", url=url, folder=folder))
    if case != "answers":
        arguments = ("submit", source, "--quiet", "--reuse", batch.id, "-o", folder / "reused.jsonl")
        show("submit --reuse", command(*arguments, url=url, folder=folder))


def main() -> None:
    """Print the peaks of every case on both databases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the case small")
    parser.add_argument("--case", action="append", choices=CASES)
    parser.add_argument("--database", action="append", choices=("sqlite", "postgresql"))
    parser.add_argument("--snapshot", action="store_true", help="one that stays open; PostgreSQL alone")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--engine", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker, options.folder, options.engine)
        return
    for case in options.case or CASES:
        for database in options.database or ("sqlite", "postgresql"):
            with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as name:
                folder = Path(name)
                folder.chmod(0o755)
                if database == "sqlite":
                    measure(case, options.requests, f"sqlite:///{folder / 'vbatch.db'}", folder)
                    continue
                server = Postgres(folder / "server")
                server.start()
                try:
                    measure(case, options.requests, server.url(), folder, snapshot=options.snapshot)
                finally:
                    server.stop()


if __name__ == "__main__":
    main()
