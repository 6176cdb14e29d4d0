"""A database of a PostgreSQL server that is dropped and restored under a worker: it waits, and continues."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rigs.commands import chats
from tests.rigs.postgres import Postgres
from tests.rigs.queued import queued
from tests.rigs.waiting import until
from tests.rigs.workers import failures, kill, start_worker
from vbatch.errors import StoreMisconfigured
from vbatch.store import COMMAND_PATIENCE, NO_PATIENCE, Store

REQUESTS = 600


def test_a_database_is_dropped_and_restored_under_a_worker(own_postgres: Postgres, tmp_path: Path) -> None:
    """With an empty one in its place for a while, as before a restore.

    Another batch gets the key of one that was submitted after the backup. A database that was never there is the fault
    of the URL. Mutants: Postgresql.diagnose without ``_accepted``: the worker ends, for good; Store.prepare that makes
    tables in the empty one.
    """
    server = own_postgres
    server.execute("CREATE DATABASE queue")
    store = Store(server.url("queue"), patience=COMMAND_PATIENCE)
    store.prepare()
    first = queued(store, tmp_path, chats(10), name="first")
    worker = start_worker(first.url, tmp_path, max_inflight=32, echo_latency_ms=50)
    log = tmp_path / f"worker-{worker.pid}.log"
    try:
        until(lambda: first.batch.status == "completed")
        server.execute("ALTER DATABASE queue ALLOW_CONNECTIONS false")
        server.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'queue'")
        server.execute("CREATE DATABASE backup TEMPLATE queue")
        server.execute("ALTER DATABASE queue ALLOW_CONNECTIONS true")
        lost = queued(store, tmp_path, chats(REQUESTS, prefix="lost"), name="lost")
        until(lambda: lost.batch.counts.completed > 0)
        key = lost.batch.pk
        store.close()
        server.execute("DROP DATABASE queue WITH (FORCE)")
        until(lambda: "the database queue was dropped" in log.read_text() or not worker.is_alive())
        server.execute("CREATE DATABASE queue")
        until(lambda: "it holds no tables of vbatch any more" in log.read_text() or not worker.is_alive())
        assert worker.is_alive(), log.read_text()[-2000:]
        assert server.execute("SELECT 1 FROM pg_tables WHERE schemaname = 'public'", "queue") == []
        server.execute("DROP DATABASE queue WITH (FORCE)")
        server.execute("CREATE DATABASE queue TEMPLATE backup")
        store.prepare()
        expected = chats(REQUESTS)
        again = queued(store, tmp_path, expected, name="again")
        assert again.batch.pk == key
        until(lambda: again.batch.status == "completed", progress=lambda: again.batch.counts)
        lines = again.lines()
        assert worker.is_alive()
    finally:
        kill(worker)
    assert not failures(tmp_path)
    assert not lines.lost(expected)
    assert not lines.doubled
    assert all(answer == custom_id for custom_id, answer in lines.answers.items())
    store.close()
    with pytest.raises(StoreMisconfigured, match="does not exist"):
        Store(server.url("never_there"), patience=NO_PATIENCE).prepare()
