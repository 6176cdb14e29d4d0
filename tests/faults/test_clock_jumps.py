"""The wall clock of one of two workers jumps by an hour and by a day, both ways: no lease is stolen, none is stuck."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.commands import chats
from tests.rigs.filling import rows
from tests.rigs.freezing import freeze
from tests.rigs.misfortune import WallClock
from tests.rigs.nvml import COMPILER
from tests.rigs.queued import queued
from tests.rigs.stores import mostly_sqlite as database_url  # noqa: F401  (a fixture)
from tests.rigs.waiting import until
from tests.rigs.workers import drain, failures, kill, start_worker
from vbatch.store import Store, registry
from vbatch.store.records import Worker

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LEASE = timedelta(seconds=3)
LOOKS = 4  # at the other workers in the time of a lease


@pytest.mark.skipif(COMPILER is None, reason="needs a C compiler for the library that moves the clock")
def test_a_wall_clock_that_jumps_decides_nothing(store: Store, tmp_path: Path) -> None:
    """One worker's clock jumps; the other one works, is frozen, and a third one is killed: each gets what is due.

    Mutant: recovery.Watch.lapsed compares ``heartbeat_at`` with the time of day. A jump ahead then takes the chunks of
    a worker that works, a jump back leaves those of one that is frozen with it.
    """
    expected = chats(4000)
    batch = queued(store, tmp_path, expected)
    options: dict[str, Any] = {"lease": LEASE, "echo_latency_ms": 1000, "max_inflight": 40}
    clock = WallClock(tmp_path / "clock")
    clock.set_off(timedelta(0))
    observer = start_worker(batch.url, tmp_path, clock=clock, **options)
    other = start_worker(batch.url, tmp_path, **options)
    log = tmp_path / f"worker-{observer.pid}.log"
    try:
        until(lambda: _held(store, observer.pid) > 0 and _held(store, other.pid) > 0)
        for shift in (HOUR, DAY, -HOUR, -DAY):
            before = _beats(store, observer.pid)
            clock.set_off(shift)
            until(partial(_has_beaten, store, observer.pid, before, by=shift))
            time.sleep(2 * LEASE.total_seconds() / LOOKS)
        assert "worker.recovered" not in log.read_text()

        assert other.pid is not None
        freeze(other.pid, store)
        until(lambda: "reason=lease_lapsed" in log.read_text())
        assert _held(store, other.pid) == 0
        kill(other)

        clock.set_off(DAY)
        third = start_worker(batch.url, tmp_path, **options)
        until(lambda: _held(store, third.pid) > 0)
        kill(third)
        until(lambda: "reason=process_gone" in log.read_text())
        assert _held(store, third.pid) == 0
    finally:
        kill(observer)
        kill(other)
    logs = "".join(path.read_text() for path in tmp_path.glob("worker-*.log"))
    assert logs.count("lease_lapsed") == 1
    assert "chunks.rejected" not in logs
    assert "chunks.revoked" not in logs
    drain(batch.url, tmp_path)
    assert not failures(tmp_path)
    assert not batch.lines().lost(expected)
    assert not batch.lines().doubled


def _of(store: Store, pid: int | None) -> Worker | None:
    return next((worker for worker in registry.live(store) if worker.identity.pid == pid), None)


def _held(store: Store, pid: int | None) -> int:
    """How many chunks the worker of this process holds."""
    query = (
        "SELECT count(*) FROM chunk JOIN worker ON worker.id = chunk.worker"
        " WHERE chunk.state = 'running' AND worker.pid = :pid"
    )
    return int(rows(store, query, pid=pid)[0][0])


def _beats(store: Store, pid: int | None) -> int:
    worker = _of(store, pid)
    return 0 if worker is None else worker.heartbeat


def _has_beaten(store: Store, pid: int | None, before: int, *, by: timedelta) -> bool:
    """Whether this worker has beaten twice since its clock is off by so much: a server's time is right all the same."""
    worker = _of(store, pid)
    shown = timedelta(0) if store.file is None else by
    return (
        worker is not None
        and worker.heartbeat > before + 1
        and abs(worker.heartbeat_at - datetime.now(UTC) - shown) < timedelta(minutes=1)
    )
