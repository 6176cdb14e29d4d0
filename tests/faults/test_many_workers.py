"""Eight workers on one store: each chunk is leased and recorded once, and a lock is waited for, never an error."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.rigs.commands import Home, chats
from tests.rigs.filling import count, rows
from tests.rigs.queued import queued
from tests.rigs.waiting import until
from tests.rigs.workers import failures, kill, start_worker
from vbatch.store import Store

WORKERS = 8
BESIDE = 2  # batches submitted meanwhile
LONGEST_WAIT = 60  # seconds to wait for the others, as long as a command does: it is told, and is no failure


def test_eight_workers_record_each_chunk_once(store: Store, tmp_path: Path) -> None:
    """And commands meanwhile do what they are told.

    Mutants: queue.claim leaves the state of what it leases ready. faults._SQLITE_PASSING without SQLITE_BUSY, and a
    BUSY_TIMEOUT_MS of 0; a worker or a command then fails over a lock.
    """
    expected = chats(10_000)
    batch = queued(store, tmp_path, expected)
    home = Home(tmp_path, batch.url)
    beside: list[str] = []
    told: list[str] = []
    workers = [start_worker(batch.url, tmp_path) for _ in range(WORKERS)]
    try:
        for number in range(BESIDE):
            submitted = home.run("submit", home.write(f"beside-{number}", chats(300)))
            status = home.run("status", batch.id, "--json")
            assert json.loads(status.stdout)["id"] == batch.id
            beside.append(submitted.stdout.strip())
            told += [submitted.stderr, status.stderr]
        until(lambda: batch.batch.status == "completed", progress=lambda: batch.batch.counts.completed)
        until(lambda: all(home.finished(batch_id) == 300 for batch_id in beside))
        assert all(worker.is_alive() for worker in workers)
    finally:
        for worker in workers:
            kill(worker)
    logs = [path.read_text() for path in tmp_path.glob("worker-*.log")]
    waits = [float(seconds) for log in logs for seconds in re.findall(r"store.waiting .*seconds=(\S+)", log)]
    waits += [
        float(seconds)
        for words in told
        for seconds in re.findall(r"waiting for the store: .* \((\d+) s\)", words)
    ]
    print(f"{len(waits)} waits for the store, {max(waits, default=0)} s at most")
    lines = batch.lines()
    assert not lines.lost(expected)
    assert not lines.doubled
    assert not lines.errors
    assert count(store, "result") == len(expected) + 300 * BESIDE
    assert rows(store, "SELECT DISTINCT epoch, state FROM chunk") == [(1, "done")]
    assert not failures(tmp_path)
    assert max(waits, default=0) < LONGEST_WAIT
    for words in ("database is locked", "error:", "chunks.rejected", "chunks.revoked", "lease_lapsed"):
        assert [line for text in (*logs, *told) for line in text.splitlines() if words in line] == []
