"""How long a claim and a flush take in an empty store and beside millions of finished requests.

    python -m tests.benchmarks.bench_store [--finished 5000000]

The goal is that it makes no difference: work is found by partial indexes that hold what is open, never what is done.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

from sqlalchemy import Connection, text

from tests.rigs.filling import answers_to, take_in, worker
from tests.rigs.postgres import Postgres
from vbatch.store import COMMAND_PATIENCE, Store, queue

ROUNDS = 60
CHUNK = 256


def finish(store: Store, requests: int) -> None:
    """Fill the store with a finished batch of so many requests, as the store itself would have written it.

    Written by the database alone: what is measured is what it costs to work beside them.
    """
    batch = take_in(store, 1)
    series = (
        "WITH RECURSIVE series(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM series WHERE n < :count) "
        if store.file is not None
        else "WITH series AS (SELECT generate_series(1, :count) AS n) "
    )

    def work(connection: Connection) -> None:
        chunks = (requests + CHUNK - 1) // CHUNK
        connection.execute(
            text(
                "INSERT INTO chunk "
                "(batch, number, model, url, priority, first_seq, last_seq, state, epoch, total, completed) "
                + series
                + "SELECT :batch, n + 1000, 'm', '/v1/chat/completions', 0, n * 256, n * 256 + 255, "
                "'done', 1, 256, 256 "
                "FROM series"
            ),
            {"count": chunks, "batch": batch.pk},
        )
        connection.execute(
            text(
                "INSERT INTO result (batch, seq, epoch, status_code, body, prompt_tokens, completion_tokens, attempts) "
                + series
                + "SELECT :batch, n + 256, 1, 200, :body, 9, 9, 1 FROM series"
            ),
            {"count": requests, "batch": batch.pk, "body": b"x" * 200},
        )

    store.write(work)
    who = worker(store)
    while leases := queue.claim(store, worker=who, models=["m"], chunks=4, held=frozenset()):
        for lease in leases:
            queue.flush(store, worker=who, results=answers_to(lease))


def measure(store: Store) -> tuple[list[float], list[float]]:
    """Return the milliseconds of each claim of a chunk and of each flush of its 256 results."""
    take_in(store, ROUNDS * CHUNK)
    who = worker(store)
    claims, flushes = [], []
    for _ in range(ROUNDS):
        began = time.perf_counter()
        (lease,) = queue.claim(store, worker=who, models=["m"], chunks=1, held=frozenset())
        claimed = time.perf_counter()
        queue.flush(store, worker=who, results=answers_to(lease))
        flushes.append((time.perf_counter() - claimed) * 1000)
        claims.append((claimed - began) * 1000)
    return claims, flushes


def main() -> None:
    """Print the medians beside few and beside many finished requests, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--finished", type=int, default=5_000_000)
    most = parser.parse_args().finished
    with tempfile.TemporaryDirectory(prefix="vbatch-bench-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        server = Postgres(folder / "server")
        server.start()
        for kind in ("SQLite", "PostgreSQL"):
            medians: list[tuple[float, float]] = []
            for finished in (10_000, most):
                server.execute(f"CREATE DATABASE bench_{finished}")
                url = (
                    f"sqlite:///{folder / f'{finished}.db'}"
                    if kind == "SQLite"
                    else server.url(f"bench_{finished}")
                )
                store = Store(url, patience=COMMAND_PATIENCE)
                store.prepare()
                finish(store, finished)
                claims, flushes = measure(store)
                medians.append((statistics.median(claims), statistics.median(flushes)))
                print(
                    f"{kind:10} beside {finished:10,} finished: claim {medians[-1][0]:6.2f} ms "
                    f"(slowest {max(claims):6.2f}), flush {medians[-1][1]:6.2f} ms (slowest {max(flushes):6.2f})",
                    flush=True,
                )
                store.close()
                server.execute(f"DROP DATABASE bench_{finished}")
            (few_claim, few_flush), (many_claim, many_flush) = medians
            print(
                f"{kind:10} many / few: claim {many_claim / few_claim:.2f}, flush {many_flush / few_flush:.2f}"
            )
        server.stop()


if __name__ == "__main__":
    main()
