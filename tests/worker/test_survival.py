"""A worker that dies or freezes loses nothing and doubles nothing: real processes, real signals."""

from __future__ import annotations

import re
import signal
import subprocess
import time

import pytest

from tests.rigs.commands import VBATCH, Home, Lines, chats
from tests.rigs.filling import rows
from tests.rigs.freezing import freeze
from tests.rigs.waiting import exit_code, until
from vbatch.store import Store, catalog

REQUESTS = chats(2000)


def assert_whole(home: Home, batch_id: str, expected: list[dict[str, object]]) -> None:
    batch = home.batch(batch_id)
    assert batch["status"] == "completed", batch
    lines = Lines.of(batch)
    assert not lines.lost(expected)
    assert not lines.doubled
    assert all(lines.answers[key] == key for key in lines.answers)


def test_a_batch_is_answered(home: Home) -> None:
    batch_id = home.submit(REQUESTS)
    home.run("run-worker", "--engine", "echo", "--drain")
    assert_whole(home, batch_id, REQUESTS)


def test_it_imports_nothing_of_vbatch_once_its_engine_is_loaded(home: Home) -> None:
    """An upgrade in the night does not mix two versions, and no answer waits for an import.

    Mutant: the finalizer takes ``finalize`` from the package of batches, which imports it when it is needed.
    """
    home.submit(chats(20))
    with home.worker("--engine", "echo", "--drain", PYTHONPROFILEIMPORTTIME="1") as worker:
        assert exit_code(worker) == 0, home.worker_log
    before, _, after = home.worker_log.partition(" engine.loaded ")
    assert "batch.completed" in after
    assert re.findall(r"^import time:.* (vbatch[\w.]*)$", before, re.MULTILINE)
    assert not re.findall(r"^import time:.* (vbatch[\w.]*)$", after, re.MULTILINE)


def test_a_submit_that_was_killed_can_be_repeated(home: Home) -> None:
    """The power went while the file was read. Mutant: looking for taken paths before sweeping what the dead left."""
    output = ("-o", str(home.path / "answers.jsonl"))
    reading = subprocess.Popen(
        [*VBATCH, "submit", "-", *output], env=home.env, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL
    )
    store = Store(home.database_url)
    store.prepare()
    until(lambda: bool(catalog.paths_in_use(store, paths=[output[1]])))
    beside = home.run("submit", home.write("prompts", REQUESTS), *output, check=False)
    assert beside.returncode == 2
    assert "another submit is reading its file now" in beside.stderr
    reading.kill()
    reading.wait()
    batch_id = home.run("submit", home.path / "prompts.jsonl", *output).stdout.strip()
    assert home.run("list", "-q").stdout.split() == [batch_id]
    store.close()


def test_next_worker_goes_on_at_once_after_sigkill(home: Home) -> None:
    """Mutant: recovery.recover ignores Liveness.GONE, so that the batch waits for the lease."""
    home.extra |= {"VBATCH_ECHO_LATENCY_MS": "200", "VBATCH_LEASE": "3600"}
    batch_id = home.submit(REQUESTS)
    with home.worker("--engine", "echo") as worker:
        until(lambda: home.finished(batch_id) > 300)
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    assert home.batch(batch_id)["status"] == "in_progress"
    home.run("run-worker", "--engine", "echo", "--drain")
    assert_whole(home, batch_id, REQUESTS)


def test_frozen_worker_writes_nothing_after_its_lease(home: Home) -> None:
    """Mutant: a flush that asks neither whose a chunk is nor whether it is done; the thawed worker's answers count.

    That the epoch matters, too, is tested where it can be told from the rest: ``tests/store/test_lease.py``.
    """
    home.extra |= {"VBATCH_LEASE": "3", "VBATCH_ECHO_LATENCY_MS": "4000"}
    expected = chats(200)
    batch_id = home.submit(expected)
    with home.worker("--engine", "echo") as frozen:
        store = Store(home.database_url)
        until(lambda: rows(store, "SELECT count(*) FROM chunk WHERE state = 'running'") == [(1,)])
        freeze(frozen.pid, store)  # its requests are running now; none is answered yet
        store.close()
        assert home.finished(batch_id) == 0
        home.run("run-worker", "--engine", "echo", "--drain")
        assert_whole(home, batch_id, expected)
        before = home.run("results", batch_id).stdout
        frozen.send_signal(signal.SIGCONT)
        until(lambda: "chunks.rejected" in home.worker_log or "chunks.revoked" in home.worker_log)
        assert home.run("results", batch_id).stdout == before
        assert home.finished(batch_id) == len(expected)


def test_sigterm_drains_and_exits_0(home: Home) -> None:
    """Mutant: Serving._stop_draining cancels what runs; then requests of this batch would run twice."""
    home.extra["VBATCH_ECHO_LATENCY_MS"] = "800"
    batch_id = home.submit(REQUESTS)
    with home.worker("--engine", "echo") as worker:
        until(lambda: home.finished(batch_id) > 0)
        worker.send_signal(signal.SIGTERM)
        assert exit_code(worker) == 0
    assert 0 < home.finished(batch_id) < len(REQUESTS)
    home.extra["VBATCH_ECHO_LATENCY_MS"] = "0"
    home.run("run-worker", "--engine", "echo", "--drain")
    assert_whole(home, batch_id, REQUESTS)


FASTEST = 50  # requests a second: 20 at once, 400 ms each


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_tells_its_pace_until_it_is_gone(home: Home) -> None:
    """Mutants: a heartbeat without the pace, one that comes each 20 s, a pace that outlives its worker."""
    home.extra["VBATCH_ECHO_LATENCY_MS"] = "400"
    batch_id = home.submit(REQUESTS)
    with home.worker("--engine", "echo", "--max-inflight", "20") as worker:
        until(lambda: home.finished(batch_id) > 0)
        store = Store(home.database_url)
        until(lambda: rows(store, "SELECT requests_per_second FROM worker") != [(None,)])
        store.close()
        assert home.finished(batch_id) < 15 * FASTEST, "it is told each 20 s"
        batch = home.batch(batch_id)
        assert 10 < batch["requests_per_second"] <= FASTEST, batch  # type: ignore[operator]
        assert batch["seconds_remaining"] > 10, batch  # type: ignore[operator]
        worker.send_signal(signal.SIGKILL)
        worker.wait()
    batch = home.batch(batch_id)
    assert (batch["requests_per_second"], batch["seconds_remaining"]) == (None, None)


def test_cancel_stops_what_runs_at_once(home: Home) -> None:
    """Mutant: Serving.run never starts its check of the leases; each request then runs to its end, for an hour."""
    home.extra["VBATCH_ECHO_LATENCY_MS"] = "3600000"
    batch_id = home.submit(chats(600))
    with home.worker("--engine", "echo", "--drain") as worker:
        until(lambda: "engine.loaded" in home.worker_log)
        time.sleep(1)  # its requests are running now
        home.run("cancel", batch_id)
        until(lambda: "chunks.revoked" in home.worker_log)
        assert exit_code(worker) == 0  # nothing runs any more
    assert home.batch(batch_id)["status"] == "cancelled"


def test_cancel_keeps_finished_requests(home: Home) -> None:
    home.extra["VBATCH_ECHO_LATENCY_MS"] = "500"
    batch_id = home.submit(REQUESTS)
    with home.worker("--engine", "echo"):
        until(lambda: home.finished(batch_id) > 0)
        home.run("cancel", batch_id)
        until(lambda: home.batch(batch_id)["status"] == "cancelled")
    lines = Lines.of(home.batch(batch_id))
    assert not lines.lost(REQUESTS)
    assert not lines.doubled
    assert lines.answers
    assert {error["error"]["code"] for error in lines.errors.values()} == {"batch_cancelled"}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_preloaded_model_is_there_before_there_is_work(home: Home) -> None:
    """Mutant: WorkLoop.run without its look at ``preload``; the first batch then waits for its model."""
    log = home.run("run-worker", "--engine", "echo", "--drain").stderr
    assert "engine.loaded" not in log
    log = home.run("run-worker", "--engine", "echo", "--drain", "--preload", "echo").stderr
    assert "engine.loaded model=echo" in log
    batch_id = home.submit(chats(3))
    log = home.run("run-worker", "--engine", "echo", "--drain", "--preload", "echo").stderr
    assert log.count("engine.loaded") == 1
    assert home.batch(batch_id)["status"] == "completed"
