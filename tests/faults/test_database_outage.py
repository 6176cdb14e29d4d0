"""PostgreSQL stops, dies, restarts, loses its clients and its answers in the middle of a batch: all is kept."""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.commands import Home, chat, chats
from tests.rigs.postgres import Postgres
from tests.rigs.proxy import Mood, Proxy, proxy
from tests.rigs.queued import Queued, queued
from tests.rigs.waiting import until
from tests.rigs.workers import drain, exit_code, failures, kill, start_worker
from vbatch.store import COMMAND_PATIENCE, Store, catalog

REQUESTS = 12_000
RESUMED_WITHIN = 5  # seconds after the database is back something is saved again
NOISE = 1  # seconds, of a busy machine
LONGEST_PAUSE_FROM = 8  # tries in a row: from then on the pauses are as long as they get


@pytest.fixture
def server_store(own_postgres: Postgres) -> Iterator[Store]:
    """A store on a PostgreSQL that may be mistreated."""
    store = Store(own_postgres.url())
    store.prepare()
    yield store
    store.close()


def assert_whole(batch: Queued, expected: list[dict[str, object]], folder: Path) -> None:
    lines = batch.lines()
    print(f"lost={len(lines.lost(expected))} doubled={len(lines.doubled)}")
    assert not failures(folder)
    assert not lines.lost(expected)
    assert not lines.doubled
    assert not lines.errors


def run_through(batch: Queued, folder: Path, url: str, mistreat: Callable[[], None], **options: Any) -> str:
    """Work on the batch while ``mistreat`` is called again and again; one worker has to survive it all."""
    worker = start_worker(url, folder, drain=True, max_inflight=32, **options)
    try:
        until(lambda: batch.batch.counts.completed > 0)
        mistreat()
        assert exit_code(worker) == 0
    finally:
        kill(worker)
    return (folder / f"worker-{worker.pid}.log").read_text()


def test_twenty_restarts_of_every_kind(own_postgres: Postgres, server_store: Store, tmp_path: Path) -> None:
    """Mutant: Store._patiently without its retry; the worker then fails at the first restart."""
    expected = chats(REQUESTS)
    batch = queued(server_store, tmp_path, expected)

    def mistreat() -> None:
        dice = random.Random(20)
        for round_ in range(20):
            match round_ % 4:
                case 0:
                    own_postgres.kill()
                case 1:
                    own_postgres.stop(signal.SIGQUIT)
                case _:
                    own_postgres.stop(signal.SIGINT)
            time.sleep(dice.uniform(0, 0.4))
            own_postgres.start()
            time.sleep(dice.uniform(0.1, 0.6))

    log = run_through(batch, tmp_path, batch.url, mistreat)
    assert "store.waiting" in log
    assert log.count("engine.loaded") == 1, "the engine is kept through every outage"
    assert_whole(batch, expected, tmp_path)


@pytest.mark.parametrize("seconds", [10, pytest.param(30, marks=pytest.mark.long)])
def test_backends_are_terminated_all_the_time(
    own_postgres: Postgres, server_store: Store, tmp_path: Path, seconds: int
) -> None:
    """Two a second, for as long as the batch lasts at least. Mutant: faults._PASSING without 57P01."""
    expected = chats(400 * seconds)
    batch = queued(server_store, tmp_path, expected)

    def mistreat() -> None:
        for _ in range(2 * seconds):
            own_postgres.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'vbatch'"
                " ORDER BY backend_start DESC LIMIT 1"
            )
            time.sleep(0.5)
        assert batch.batch.status == "in_progress", "it ended before the mistreatment did"

    log = run_through(batch, tmp_path, batch.url, mistreat, echo_latency_ms=100)
    print(f"outages met: {log.count('store.waiting')}")
    assert log.count("store.waiting") > seconds // 2
    assert_whole(batch, expected, tmp_path)


@pytest.fixture
def through(own_postgres: Postgres) -> Iterator[Proxy]:
    """A proxy before the server."""
    with proxy(own_postgres.socket) as running:
        yield running


@pytest.mark.parametrize("command", ["submit", "retry"])
def test_a_batch_is_stored_from_its_start_again(
    own_postgres: Postgres, server_store: Store, tmp_path: Path, command: str
) -> None:
    """The backend ends twice in the middle of the COPY. Mutant: ``retry`` without ingest.patiently."""
    home = Home(tmp_path, own_postgres.url())
    first = home.submit([chat("a", "a", echo="error400")])
    drain(own_postgres.url(), tmp_path)
    own_postgres.execute("CREATE SEQUENCE copies")  # no rollback takes back what it has counted
    own_postgres.execute(
        "CREATE FUNCTION cut() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF nextval('copies') <= 2 THEN PERFORM pg_terminate_backend(pg_backend_pid()); END IF;"
        " RETURN NEW; END $$"
    )
    own_postgres.execute("CREATE TRIGGER cut BEFORE INSERT ON request FOR EACH ROW EXECUTE FUNCTION cut()")
    what = first if command == "retry" else str(home.write("second", [chat("b", "b")]))
    second = home.run(command, what, "-q").stdout.strip()
    assert own_postgres.execute("SELECT last_value FROM copies") == [(3,)]
    assert catalog.find(server_store, second).counts.total == 1
    assert {batch.id for batch in catalog.recent(server_store, limit=9)} == {first, second}


def test_lost_answers_to_commit_double_nothing(through: Proxy, server_store: Store, tmp_path: Path) -> None:
    """Mutant: queue._unrecorded returns all results; the replayed flush then meets its own rows."""
    expected = chats(REQUESTS)
    batch = queued(server_store, tmp_path, expected)
    url = f"postgresql://postgres@127.0.0.1:{through.port}/postgres"

    def mistreat() -> None:
        for _ in range(25):
            through.mood = Mood.DROP_COMMIT_ANSWER
            time.sleep(0.15)

    run_through(batch, tmp_path, url, mistreat)
    print(f"dropped answers to COMMIT: {through.dropped_commits}")
    assert through.dropped_commits >= 5
    assert_whole(batch, expected, tmp_path)


def test_server_that_comes_up_slowly(through: Proxy, server_store: Store, tmp_path: Path) -> None:
    """The incident: a port that accepts and closes, then a server that is starting up, then one that is ready.

    Mutants: faults.diagnose takes 57P03 for permanent. WORKER_PATIENCE pauses for up to 10 s. The server is ready just
    after a try that failed, when the longest pause is still to come.
    """
    expected = chats(50)
    batch = queued(server_store, tmp_path, expected)
    url = f"postgresql://postgres@127.0.0.1:{through.port}/postgres"
    through.mood = Mood.ACCEPT_AND_CLOSE
    worker = start_worker(url, tmp_path, drain=True)
    log = tmp_path / f"worker-{worker.pid}.log"

    def tries() -> int:
        return log.read_text().count("store.waiting") if log.exists() else 0

    try:
        until(lambda: tries() and "closed the connection unexpectedly" in log.read_text())
        through.mood = Mood.STARTING_UP
        until(lambda: "starting up" in log.read_text())
        until(lambda: tries() >= LONGEST_PAUSE_FROM)
        through.mood = Mood.FORWARD
        seconds = until(lambda: "store.back" in log.read_text(), pause=0.01)
        print(f"the worker is back {seconds:.1f} s after the server was ready")
        assert seconds < RESUMED_WITHIN + NOISE
        assert exit_code(worker) == 0
    finally:
        kill(worker)
    assert_whole(batch, expected, tmp_path)


def test_full_disk_of_the_server_is_waited_for(
    own_postgres: Postgres, server_store: Store, tmp_path: Path
) -> None:
    """Mutant: faults._PASSING without class 53. The disk is full by decree: a trigger raises 53100."""
    expected = chats(400)
    batch = queued(server_store, tmp_path, expected)
    own_postgres.execute(
        "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'could not extend file: No space left on device' USING ERRCODE = '53100'; END $$"
    )
    own_postgres.execute("CREATE TRIGGER full_disk BEFORE INSERT ON result EXECUTE FUNCTION full_disk()")
    worker = start_worker(batch.url, tmp_path, drain=True)
    log = tmp_path / f"worker-{worker.pid}.log"
    try:
        until(lambda: log.exists() and "disk is full" in log.read_text())
        assert batch.batch.counts.completed == 0
        own_postgres.execute("DROP TRIGGER full_disk ON result")
        assert exit_code(worker) == 0
    finally:
        kill(worker)
    assert_whole(batch, expected, tmp_path)


# Python runs this at each start: a minute of waiting takes three seconds.
_TWENTY_TIMES_AS_FAST = """
from dataclasses import replace
from vbatch.batches import startup
patience = startup.COMMAND_PATIENCE
startup.COMMAND_PATIENCE = replace(patience, limit=patience.limit / 20, pause=patience.pause / 20)
"""


def test_commands_wait_visibly_and_then_exit_75(tmp_path: Path, through: Proxy) -> None:
    """Mutants: COMMAND_PATIENCE without limit; open_store without patience."""
    assert COMMAND_PATIENCE.limit == timedelta(minutes=1)
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(_TWENTY_TIMES_AS_FAST)
    home = Home(tmp_path, f"postgresql://postgres@127.0.0.1:{through.port}/postgres")
    path = [str(tmp_path / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    home.extra["PYTHONPATH"] = ":".join(path)
    through.mood = Mood.ACCEPT_AND_CLOSE
    done = home.run("list", check=False)
    assert done.returncode == 75
    assert "Traceback" not in done.stderr
    assert "waiting for the store" in done.stderr
    assert "closed the connection unexpectedly" in done.stderr


def test_command_goes_on_when_the_server_is_back(tmp_path: Path, through: Proxy, server_store: Store) -> None:
    """A submit that meets an outage ends well by itself. Mutant: NO_PATIENCE for commands."""
    home = Home(tmp_path, f"postgresql://postgres@127.0.0.1:{through.port}/postgres")
    through.mood = Mood.STARTING_UP
    threading.Timer(4, lambda: setattr(through, "mood", Mood.FORWARD)).start()
    batch_id = home.submit(chats(10))
    assert catalog.find(server_store, batch_id).counts.total == 10
