"""Eight workers on one store: each chunk is leased and recorded once, and nobody hears of a locked database."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rigs.commands import chats, wait_until
from tests.rigs.queued import queued
from tests.rigs.workers import failures, kill, start_worker
from tests.store.filling import count, rows
from vbatch.store import Store

WORKERS = 8


@pytest.mark.timeout(180)
def test_eight_workers_record_each_chunk_once(store: Store, tmp_path: Path) -> None:
    """Mutant: queue.claim leaves the state of what it leases ready."""
    expected = chats(10_000)
    batch = queued(store, tmp_path, expected)
    workers = [start_worker(batch.url, tmp_path) for _ in range(WORKERS)]
    try:
        wait_until(lambda: batch.batch.status == "completed", timeout=120)
        assert all(worker.is_alive() for worker in workers)
    finally:
        for worker in workers:
            kill(worker)
    logs = [path.read_text() for path in tmp_path.glob("worker-*.log")]
    lines = batch.lines()
    assert not lines.lost(expected)
    assert not lines.doubled
    assert not lines.errors
    assert count(store, "result") == len(expected)
    assert rows(store, "SELECT DISTINCT epoch, state FROM chunk") == [(1, "done")]
    assert not failures(tmp_path)
    for told in ("database is locked", "chunks.rejected", "chunks.revoked", "lease_lapsed"):
        assert not any(told in log for log in logs)
