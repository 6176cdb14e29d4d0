"""More clients than the database has connections for, many readers beside a writer, and a submit killed within COPY."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest

from tests.rigs.commands import VBATCH, Home, chats
from tests.rigs.filling import count
from tests.rigs.postgres import Postgres
from tests.rigs.queued import queued
from tests.rigs.waiting import output, until
from tests.rigs.workers import failures, kill, start_worker
from vbatch.recovery import dead_workers
from vbatch.store import COMMAND_PATIENCE, Store

READERS = 50


def test_eight_workers_share_five_connections(own_postgres: Postgres, tmp_path: Path) -> None:
    """Mutant: sqlstates.passing without class 53; a worker then ends over "too many clients"."""
    expected = chats(2000)
    own_postgres.stop()
    own_postgres.start(max_connections="5", superuser_reserved_connections="0", max_wal_senders="0")
    store = Store(own_postgres.url(), patience=COMMAND_PATIENCE)
    store.prepare()
    batch = queued(store, tmp_path, expected)
    store.close()
    workers = [start_worker(batch.url, tmp_path, max_inflight=32) for _ in range(8)]
    try:
        until(
            (tmp_path / "prompts.output.jsonl").exists,
            progress=lambda: sum(len(path.read_bytes()) for path in tmp_path.glob("worker-*.log")),
        )
        assert all(worker.is_alive() for worker in workers)
    finally:
        for worker in workers:
            kill(worker)
    logs = "".join(path.read_text() for path in tmp_path.glob("worker-*.log"))
    assert "the server has no free connection" in logs
    assert not failures(tmp_path)
    until(lambda: batch.batch.status == "completed")
    lines = batch.lines()
    assert not lines.lost(expected)
    assert not lines.doubled
    store.close()


@pytest.mark.long
def test_fifty_readers_at_once_beside_a_writer(store: Store, tmp_path: Path) -> None:
    """Mutant: a BUSY_TIMEOUT_MS of 0 and faults without SQLITE_BUSY."""
    batch = queued(store, tmp_path, chats(20_000))
    home = Home(tmp_path, batch.url)
    worker = start_worker(batch.url, tmp_path, max_inflight=32, echo_latency_ms=50)
    try:
        until(lambda: batch.batch.counts.completed > 0)
        readers = [
            subprocess.Popen(
                [*VBATCH, "status", batch.id, "--json"],
                env=home.env,
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
            for _ in range(READERS)
        ]
        before = batch.batch.counts.completed
        said = [output(reader) for reader in readers]
        assert [reader.returncode for reader in readers] == [0] * READERS
        assert [stderr for _, stderr in said if "error" in stderr] == []
        assert batch.batch.counts.completed > before
        assert worker.is_alive()
    finally:
        kill(worker)
    assert not failures(tmp_path)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_submit_that_is_killed_within_copy_leaves_nothing(store: Store, tmp_path: Path) -> None:
    """Mutant: ingest that makes the batch visible before all of it is stored."""
    home = Home(tmp_path, store.url.render_as_string(hide_password=False))
    source = home.write("prompts", chats(200_000))
    with subprocess.Popen([*VBATCH, "submit", source], env=home.env, cwd=tmp_path) as submitting:
        until(lambda: _copied(store) > 0, pause=0.005)
        submitting.send_signal(signal.SIGKILL)
    assert home.run("list", "-q").stdout == ""
    dead_workers.sweep(store)
    assert [count(store, table) for table in ("batch", "chunk", "request", "result")] == [0, 0, 0, 0]
    batch_id = home.submit(chats(10), name="again")
    assert home.batch(batch_id)["request_counts"] == {"total": 10, "completed": 0, "failed": 0}


def _copied(store: Store) -> int:
    """Return how many rows a COPY that runs now has taken."""
    query = "SELECT coalesce(max(tuples_processed), 0) FROM pg_stat_progress_copy"
    return int(store.read(lambda connection: connection.exec_driver_sql(query).scalar_one()))
