"""A stop ends the worker, whatever it waits for; a signal drains it, and only a second Ctrl-C or SIGTERM does more."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import make_url

from tests.rigs.commands import VBATCH, Home, Lines, chat, chats
from tests.rigs.filling import rows
from tests.rigs.postgres import Postgres
from tests.rigs.proxy import Mood, Proxy, proxy
from tests.rigs.stores import mostly_sqlite as database_url  # noqa: F401  (a fixture)
from tests.rigs.waiting import exit_code, until
from tests.rigs.workers import kill, start_worker
from vbatch.recovery import dead_workers
from vbatch.store import Store
from vbatch.system import processes
from vbatch.worker import Stop
from vbatch.worker.heartbeat import Heartbeat, Watchdog


@pytest.fixture
def through(postgres: Postgres) -> Iterator[Proxy]:
    """A proxy before the server."""
    with proxy(postgres.socket) as running:
        yield running


def test_an_idle_worker_ends_while_the_database_is_away(
    through: Proxy, postgresql_url: str, tmp_path: Path
) -> None:
    """Mutant: WorkLoop without ``_limit_the_stop``; it then waits until the database is back."""
    database = make_url(postgresql_url).database
    url = f"postgresql://postgres@127.0.0.1:{through.port}/{database}?sslmode=disable"
    home = Home(tmp_path, url)
    with home.worker("--engine", "echo") as worker:
        until(lambda: "worker.ready" in home.worker_log)
        through.mood = Mood.ACCEPT_AND_CLOSE
        through.cut()
        until(lambda: "store.waiting" in home.worker_log)
        worker.send_signal(signal.SIGTERM)
        assert exit_code(worker) == 0
    assert "Traceback" not in home.worker_log


def test_a_signal_after_the_loop_has_ended_is_no_error() -> None:
    stop = Stop()
    loop = asyncio.new_event_loop()
    stop.attach(loop)
    loop.close()
    stop.request()
    assert stop.requested


HUP, INT, TERM = signal.SIGHUP, signal.SIGINT, signal.SIGTERM


@contextmanager
def at_work(
    home: Home, store: Store, *, prepare: Callable[[], object] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a worker, with the terminal's signals as they are by default; it has saved the quick answer, and runs on."""
    with (home.path / "worker.log").open("ab") as log:
        worker = subprocess.Popen(
            [*VBATCH, "run-worker", "--engine", "echo"],
            env=home.env,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            preexec_fn=prepare or (lambda: signal.signal(HUP, signal.SIG_DFL)),
        )
    try:
        until(lambda: rows(store, "SELECT 1 FROM result") != [])
        yield worker
    finally:
        worker.kill()
        worker.wait()


@pytest.mark.parametrize("signals", [(HUP,), (HUP, HUP), (TERM, HUP), (HUP, TERM), (HUP, INT, HUP)])
def test_a_closed_terminal_drains_and_is_neither_the_first_nor_the_second_signal(
    home: Home, store: Store, signals: tuple[signal.Signals, ...]
) -> None:
    """Mutants: on_signals without SIGHUP; with it, but as the second signal; with it as the first one."""
    batch_id = home.submit([chat("quick", "quick"), chat("long", "long", echo="slow:5")])
    with at_work(home, store) as worker:
        for number in signals:
            worker.send_signal(number)
            until(lambda: "worker.draining" in home.worker_log)
            time.sleep(0.1)  # two of one kind at once are one
        assert exit_code(worker) == 0
    assert home.finished(batch_id) == 2


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(("second", "code"), [(TERM, 128 + TERM), (INT, 130)])
def test_a_second_ctrl_c_or_sigterm_ends_at_once_whatever_the_terminal_sent(
    home: Home, store: Store, second: signal.Signals, code: int
) -> None:
    """Mutant: on_signals that forgets the first SIGTERM at a SIGHUP."""
    home.submit([chat("quick", "quick"), chat("long", "long", echo="slow:60")])
    with at_work(home, store) as worker:
        for number in (TERM, HUP):
            worker.send_signal(number)
            until(lambda: "worker.draining" in home.worker_log)
            time.sleep(0.1)
        worker.send_signal(second)
        assert exit_code(worker) == code


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_nohup_keeps_the_worker(home: Home, store: Store) -> None:
    """Mutant: on_signals that takes SIGHUP though it is ignored."""
    batch_id = home.submit([chat("quick", "quick"), chat("long", "long", echo="slow:2")])
    with at_work(home, store, prepare=lambda: signal.signal(HUP, signal.SIG_IGN)) as worker:
        worker.send_signal(HUP)
        until(lambda: home.finished(batch_id) == 2)
        later = home.submit(chats(3), name="later")
        until(lambda: home.finished(later) == 3)
        worker.send_signal(TERM)
        assert exit_code(worker) == 0


def test_a_worker_that_was_asked_to_stop_has_no_request_blamed_for_its_end(home: Home, store: Store) -> None:
    """It drains, and is killed meanwhile: by a service manager that waits no longer, or by a second Ctrl-C.

    Mutants: a loop that does not write the signal down; crashes.reclaim that does not ask for it.
    """
    url = store.url.render_as_string(hide_password=False)
    home.submit([chat("long", "long", echo="slow:60")])
    asked = "SELECT 1 FROM worker WHERE stopping_at IS NOT NULL AND stopped_at IS NULL"
    losses = []
    for signals in ((), (), (TERM,), (), (INT, INT)):
        worker = start_worker(url, home.path)
        assert worker.pid is not None
        until(lambda: rows(store, "SELECT 1 FROM chunk WHERE state = 'running'") != [])
        for number in signals:
            os.kill(worker.pid, number)
            until(lambda: rows(store, asked) != [])
        kill(worker)
        dead_workers.release_chunks(store)
        losses += rows(store, "SELECT worker_crashes FROM chunk")
    assert losses == [(1,), (2,), (0,), (1,), (0,)]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_sigquit_drains_and_a_stop_of_the_terminal_loses_nothing(home: Home) -> None:
    """Ctrl-\\, Ctrl-Z with fg, and SIGPIPE. Mutant: on_signals without SIGQUIT, which then ends it with a core dump."""
    expected = chats(120)
    batch_id = home.submit(expected)
    with home.worker("--engine", "echo", VBATCH_ECHO_LATENCY_MS="100", VBATCH_MAX_INFLIGHT="4") as worker:
        until(lambda: home.finished(batch_id) > 0)
        worker.send_signal(signal.SIGPIPE)
        worker.send_signal(signal.SIGTSTP)
        until(lambda: processes.stat_of(worker.pid).state == "T")  # type: ignore[union-attr]
        worker.send_signal(signal.SIGCONT)
        before = home.finished(batch_id)
        until(lambda: home.finished(batch_id) > before)
        worker.send_signal(signal.SIGQUIT)
        assert exit_code(worker) == 0
    assert "worker.stopped" in home.worker_log
    home.run("run-worker", "--engine", "echo", "--drain")
    assert not Lines.of(home.batch(batch_id)).lost(expected)


def test_a_heartbeat_that_is_under_way_ends_before_the_store_is_closed() -> None:
    """Mutant: ``Heartbeat.stop`` without its join; the report then fails on a closed store, after the last word."""
    reporting, ended = threading.Event(), threading.Event()

    def report() -> None:
        reporting.set()
        threading.Event().wait(0.2)
        ended.set()

    heartbeat = Heartbeat(Watchdog(), report, lease=timedelta(milliseconds=20))
    heartbeat.start()
    assert reporting.wait(10)
    heartbeat.stop()
    assert ended.is_set()
