"""Hosts whose clocks are wrong, or which stand still: no lease is stolen, none is stuck, no answer is doubled."""

from __future__ import annotations

import json
import os
import signal
from contextlib import ExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.rigs.commands import Home, Lines, chats
from tests.rigs.filling import NOBODY, rows, take_in, worker
from tests.rigs.freezing import freeze
from tests.rigs.hosts import REAL, WHY, Host
from tests.rigs.nvml import COMPILER
from tests.rigs.waiting import until
from vbatch.store import COMMAND_PATIENCE, Store, events, finalization, registry

HOUR = timedelta(hours=1)
real_hosts = pytest.mark.skipif(not REAL, reason=WHY)


@pytest.fixture
def database(postgresql_url: str) -> Store:
    opened = Store(postgresql_url, patience=COMMAND_PATIENCE)
    opened.prepare()
    return opened


@real_hosts
@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler for the library that moves the clock")
def test_clocks_that_are_an_hour_off(tmp_path: Path, postgresql_url: str, database: Store) -> None:
    """One host is right, one ahead, one behind; all see the others' leases, and the batch's deadline, alike.

    Mutants: ``finalization.expire`` goes by the worker's clock (the host ahead ends the batch at once);
    ``registry.heartbeat`` records the host's own time (it is shown as silent for an hour); ``submit`` counts the
    deadline from its own clock; ``Watch.lapsed`` compares times of day.
    """
    options = {"VBATCH_LEASE": "4s", "VBATCH_ECHO_LATENCY_MS": "700"}
    right, ahead, behind = (
        Host(tmp_path, name, postgresql_url, clock=clock, extra=options)
        for name, clock in (("right", None), ("ahead", HOUR), ("behind", -HOUR))
    )
    first = behind.submit(expected := chats(1500), "--expires-in", "30m")
    second = ahead.submit(expected, "--expires-in", "30m", name="second")
    with ExitStack() as stack:
        for host in (right, ahead, behind):
            stack.enter_context(host.start("run-worker", "--engine", "echo", "--max-inflight", "64"))
        for host in (behind, ahead):  # each writes its own
            until(lambda host=host: "batch.completed" in host.worker_log, progress=lambda: finished(database))  # type: ignore[misc]
        seen = json.loads(right.run("list", "--json").stdout)["workers"]
        assert [found["silent"] for found in seen] == [False] * 3
        assert all(found["silent_seconds"] < 30 for found in seen)
    logs = right.worker_log + ahead.worker_log + behind.worker_log
    assert "lease_lapsed" not in logs
    assert "chunks.rejected" not in logs
    for batch_id in (first, second):
        lines = Lines.of(right.batch(batch_id))
        assert not lines.lost(expected)
        assert not lines.doubled


@real_hosts
def test_a_frozen_host_is_fenced_when_it_wakes(tmp_path: Path, postgresql_url: str, database: Store) -> None:
    """Mutant: ``Watch.lapsed`` never lapses (its chunks stay with it for ever).

    The fence of ``queue.flush`` alone has its mutant in tests/faults/test_kill_loop.py.
    """
    options = {"VBATCH_LEASE": "3s", "VBATCH_ECHO_LATENCY_MS": "1000"}
    alpha, beta = (Host(tmp_path, name, postgresql_url, extra=options) for name in ("alpha", "beta"))
    batch_id = beta.submit(expected := chats(1200))
    with alpha.start("run-worker", "--engine", "echo", "--max-inflight", "40") as sleeper:
        until(lambda: held(database, sleeper.pid) > 0)
        with beta.start("run-worker", "--engine", "echo", "--max-inflight", "40"):
            until(lambda: "worker.ready" in beta.worker_log)
            assert freeze(sleeper.pid, database)
            until(lambda: "reason=lease_lapsed" in beta.worker_log, progress=lambda: finished(database))
            assert held(database, sleeper.pid) == 0
            os.kill(sleeper.pid, signal.SIGCONT)
            until(lambda: "chunks.rejected" in alpha.worker_log or "chunks.revoked" in alpha.worker_log)
            until(lambda: "batch.completed" in beta.worker_log, progress=lambda: finished(database))
            assert sleeper.poll() is None  # it works on
    lines = Lines.of(beta.batch(batch_id))
    assert not lines.lost(expected)
    assert not lines.doubled


def test_what_hosts_compare_has_the_databases_time(database: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a process whose own clock is a day ahead. Mutant: any of these by ``datetime.now``."""

    class Ahead(datetime):
        @classmethod
        def now(cls, tz: object = None) -> Ahead:  # noqa: ARG003
            return cls.fromtimestamp(datetime.now(UTC).timestamp() + 86400, tz=UTC)

    before = datetime.now(UTC) - HOUR
    for module in ("catalog", "crashes", "events", "finalization", "ingest", "registry", "database.store"):
        found = __import__(f"vbatch.store.{module}", fromlist=["datetime"])
        if hasattr(found, "datetime"):
            monkeypatch.setattr(found, "datetime", Ahead)
    batch = take_in(database, 1, notify="https://example.com", expires_at=before + 2 * HOUR)
    mine = worker(database)
    registry.heartbeat(database, worker=mine, models=(), note=None)
    registry.stopping(database, worker=mine)
    assert finalization.expire(database) == []
    finalization.request_cancel(database, pk=batch.pk)
    assert finalization.start_finalizing(database, pk=batch.pk, by=mine) is not None
    finalization.finish(database, pk=batch.pk, by=mine, output_path="/x", error_path="/y")
    assert events.take_due(database, names=()) is not None
    registry.stop(database, worker=mine)
    times = [
        *rows(database, "SELECT in_progress_at, cancelling_at, finalizing_at, cancelled_at FROM batch")[0],
        *rows(database, "SELECT started_at, heartbeat_at, stopping_at, stopped_at FROM worker")[0],
        *rows(database, "SELECT created_at FROM event")[0],
    ]
    assert all(before < time < before + 2 * HOUR for time in times), times


def test_a_worker_that_is_silent_is_named(home: Home, store: Store) -> None:
    """By list, status, doctor and JSON. Mutants: the time since the start counts; ``is_silent`` asks for a lease."""
    take_in(store, 3)
    quiet = worker(store, identity=NOBODY)
    assert "silent" not in home.run("list").stderr
    ago = datetime.now(UTC) - timedelta(seconds=45)
    store.write(lambda connection: connection.exec_driver_sql(
        f"UPDATE worker SET heartbeat_at = '{ago:%Y-%m-%d %H:%M:%S.%f}' WHERE id = '{quiet}'"
    ))  # fmt: skip
    listed = home.run("list")
    assert "workers: 1 on elsewhere; process 2 on elsewhere is silent for 4" in listed.stderr
    document = json.loads(home.run("list", "--json").stdout)["workers"][0]
    assert (document["host"], document["silent"]) == ("elsewhere", True)
    assert document["silent_seconds"] >= 45
    assert "silent for" in home.run("status", "last", check=False).stdout
    assert "process 2 on elsewhere is silent for" in home.run("doctor", "queue", check=False).stdout


def finished(store: Store) -> int:
    return int(rows(store, "SELECT count(*) FROM result")[0][0])


def held(store: Store, pid: int) -> int:
    query = (
        "SELECT count(*) FROM chunk JOIN worker ON worker.id = chunk.worker"
        " WHERE chunk.state = 'running' AND worker.pid = :pid"
    )
    return int(rows(store, query, pid=pid)[0][0])
