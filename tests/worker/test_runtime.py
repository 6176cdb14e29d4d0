"""``run-worker --max-runtime``: ended before the walltime, nothing claimed at the end, nothing kept."""

from __future__ import annotations

import threading
from datetime import timedelta

import pytest

from tests.rigs.commands import Home, Lines, chats
from tests.rigs.filling import rows
from tests.rigs.waiting import exit_code, until
from vbatch.store import Store
from vbatch.worker import Stop, runtime


def test_it_drains_in_time_and_hands_back_what_is_unfinished(home: Home, store: Store) -> None:
    """Mutants: no stop is requested; it drains for the whole drain limit (five minutes); it keeps its chunks."""
    batch_id = home.submit(lines := chats(600))
    home.extra["VBATCH_ECHO_LATENCY_MS"] = "60000"  # none of these ends in time
    with home.worker("--engine", "echo", "--max-inflight", "20", "--max-runtime", "8s") as worker:
        until(lambda: rows(store, "SELECT count(*) FROM chunk WHERE state = 'running'") != [(0,)])
        until(lambda: "worker.runtime_over" in home.worker_log)
        assert exit_code(worker) == 0, home.worker_log
    assert "worker.stopped" in home.worker_log
    assert rows(store, "SELECT count(*) FROM chunk WHERE state = 'running'") == [(0,)]
    assert rows(store, "SELECT count(*) FROM worker WHERE stopped_at IS NULL") == [(0,)]
    home.extra["VBATCH_ECHO_LATENCY_MS"] = "0"
    home.run("run-worker", "--engine", "echo", "--drain", "--max-runtime", "1h")  # and that is no hindrance
    answered = Lines.of(home.batch(batch_id))
    assert not answered.lost(lines)
    assert not answered.doubled
    assert rows(store, "SELECT max(attempts) FROM result") == [(1,)]  # an interruption is no attempt


@pytest.mark.parametrize(
    ("limit", "drain", "begins", "lasts"),
    [
        (timedelta(hours=4), timedelta(minutes=5), 4 * 3600 - 315, 300),
        (timedelta(minutes=6), timedelta(minutes=5), 360 - 180 - 15, 180),
        (timedelta(seconds=8), timedelta(minutes=5), 2, 4),
    ],
)
def test_when_it_begins_to_stop(
    monkeypatch: pytest.MonkeyPatch, limit: timedelta, drain: timedelta, begins: float, lasts: float
) -> None:
    """Mutant: it begins when the time is over."""
    timers: list[float] = []

    class Noted(threading.Timer):
        def start(self) -> None:
            timers.append(self.interval)

    monkeypatch.setattr(threading, "Timer", Noted)
    assert runtime.end_within(Stop(), limit, drain_limit=drain).total_seconds() == lasts
    assert timers == [begins, limit.total_seconds()]


def test_a_worker_that_hangs_ends_when_the_time_is_over(home: Home, store: Store) -> None:
    """It waits for a database that is gone. Mutant: there is no second timer.

    The exit code is that of a second SIGTERM, unless the waiting ended by itself before.
    """
    del store
    home.extra["VBATCH_DATABASE_URL"] = "postgresql://nobody@127.0.0.1:1/none"
    with home.worker("--engine", "echo", "--max-runtime", "4s") as worker:
        assert exit_code(worker) in (0, 143), home.worker_log


def test_it_reads_a_time(home: Home) -> None:
    done = home.run("run-worker", "--engine", "echo", "--max-runtime", "soon", check=False)
    assert done.returncode == 2
    assert "--max-runtime: 'soon' is not a duration" in done.stderr
