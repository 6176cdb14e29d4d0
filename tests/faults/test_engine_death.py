"""Engines that die, requests that kill, hang or fail: everything else completes (echo engine, both stores)."""

from __future__ import annotations

import json
import math
import os
import re
import signal
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.rigs import parrot
from tests.rigs.commands import Home, chat, chats
from tests.rigs.filling import rows
from tests.rigs.queued import queued
from tests.rigs.stores import mostly_sqlite as database_url  # noqa: F401  (a fixture)
from tests.rigs.waiting import until
from tests.rigs.workers import drain, exit_code, kill, start_worker
from vbatch.recovery import dead_workers
from vbatch.store import Store


def test_poisonous_request_is_found_and_the_rest_completes(store: Store, tmp_path: Path) -> None:
    """Mutant: suspects.crashed always gives back; the worker then gives up (HOPELESS_DEATHS) or never ends."""
    lines = chats(600)
    lines[333] = chat("poison", "x", echo="exit")
    batch = queued(store, tmp_path, lines)
    log = drain(batch.url, tmp_path)
    ended = batch.lines()
    assert ended.errors.keys() == {"poison"}
    assert ended.errors["poison"]["error"]["code"] == "engine_crash"
    assert not ended.lost(lines)
    assert not ended.doubled
    deaths = log.count("engine.died")
    print(f"engine deaths: {deaths}")
    assert deaths <= 8 + 2, "more than log2(256) + 2"


def test_three_poisonous_requests_in_two_batches(store: Store, tmp_path: Path) -> None:
    """Mutant: suspects.crashed convicts without ``alone``; the first that runs beside each is then convicted.

    It takes time to answer, so that others are in the engine when it dies.
    """
    first, second = chats(300, prefix="a"), chats(300, prefix="b")
    first[10] = chat("poison-1", "x", echo="exit")
    first[290] = chat("poison-2", "x", echo="exit")
    second[5] = chat("poison-3", "x", echo="exit")
    batches = [queued(store, tmp_path, first, name="a"), queued(store, tmp_path, second, name="b")]
    drain(batches[0].url, tmp_path, echo_latency_ms=30)
    assert batches[0].lines().errors.keys() == {"poison-1", "poison-2"}
    assert batches[1].lines().errors.keys() == {"poison-3"}
    for batch, lines in zip(batches, (first, second), strict=True):
        assert not batch.lines().lost(lines)


def test_an_engine_that_the_kernel_kills_convicts_no_request(store: Store, tmp_path: Path) -> None:
    """As for lack of memory: five times over one request that runs alone, which is three more than convict else.

    Mutant: crashes.record_engine_crash without ``killed``.
    """
    batch = queued(store, tmp_path, [chat("big", "x", echo="exit")])
    worker = start_worker(batch.url, tmp_path, engine=parrot.KILLED)
    log = tmp_path / f"worker-{worker.pid}.log"
    try:
        until(lambda: log.exists() and log.read_text().count("engine.died") >= 5)
    finally:
        kill(worker)
    assert batch.failed() == 0
    worker = start_worker(
        batch.url, tmp_path, engine=parrot.NAME
    )  # what crashes by itself is found as before
    try:
        until(lambda: batch.failed() == 1)
    finally:
        kill(worker)


def test_request_that_kills_the_whole_worker_is_found(store: Store, tmp_path: Path) -> None:
    """Three deaths for each halving of 40, and ten over it alone: it is the last one, with nothing to compare it with.

    Mutant: suspects.lost always gives back; worker after worker then dies over the same chunk.
    """
    lines = chats(40)
    lines[17] = chat("poison", "x", echo="kill")
    batch = queued(store, tmp_path, lines)
    for deaths in range(60):  # noqa: B007
        worker = start_worker(batch.url, tmp_path, drain=True, flush_interval=timedelta(milliseconds=20))
        if exit_code(worker) == 0:
            break
    print(f"worker deaths: {deaths}")
    assert deaths <= 3 * math.ceil(math.log2(40)) + 10
    ended = batch.lines()
    assert ended.errors.keys() == {"poison"}
    assert not ended.lost(lines)


def test_request_that_kills_workers_is_found_by_comparison(store: Store, tmp_path: Path) -> None:
    """Another batch waits: between its deaths a request of that one runs alone to its end.

    Mutant: queue.claim that always takes the suspect itself; ten deaths are needed then.
    """
    batch = queued(store, tmp_path, [chat("poison", "x", echo="kill")])
    other = queued(store, tmp_path, chats(40), name="other", priority=-1)
    for deaths in range(20):  # noqa: B007
        worker = start_worker(batch.url, tmp_path, drain=True, flush_interval=timedelta(milliseconds=20))
        if exit_code(worker) == 0:
            break
    assert deaths == 3
    assert "ran alone to their end" in batch.lines().errors["poison"]["error"]["message"]
    assert not other.lines().lost(chats(40))
    assert not other.lines().errors


@pytest.mark.parametrize(("sent", "times"), [(signal.SIGHUP, 12), (signal.SIGKILL, 9)])
def test_whoever_ends_workers_from_outside_convicts_no_request(
    store: Store, tmp_path: Path, sent: signal.Signals, times: int
) -> None:
    """The terminal is closed again and again, or the worker killed, over one request that takes longer than that.

    Mutants: on_signals without SIGHUP; the tenth closing then convicts. UNCOMPARED_WORKER_CRASHES = WORKER_CRASHES.
    """
    batch = queued(store, tmp_path, [chat("long", "long", echo="slow:5")])
    options: dict[str, Any] = {"drain_limit": timedelta(milliseconds=50)}
    for _ in range(times):
        worker = start_worker(batch.url, tmp_path, **options)
        until(lambda: rows(store, "SELECT 1 FROM chunk WHERE state = 'running'") != [])
        assert worker.pid is not None
        os.kill(worker.pid, sent)
        assert exit_code(worker) == (0 if sent == signal.SIGHUP else -signal.SIGKILL)
        assert batch.failed() == 0
        if sent == signal.SIGKILL:
            dead_workers.release_chunks(store)
    drain(batch.url, tmp_path)
    assert batch.lines().answers == {"long": "long"}


def test_hanging_request_ends_by_its_time_limit(store: Store, tmp_path: Path) -> None:
    """Mutant: Inflight._answer without its timeout; the batch then never ends."""
    lines = [*chats(50), chat("hangs", "x", echo="hang")]
    batch = queued(store, tmp_path, lines)
    drain(batch.url, tmp_path, request_timeout=timedelta(seconds=4))
    ended = batch.lines()
    assert ended.errors["hangs"]["error"]["code"] == "request_timeout"
    assert len(ended.answers) == 50


def test_engine_without_progress_is_restarted(store: Store, tmp_path: Path) -> None:
    """Mutant: Serving._stalled returns None; a hung engine is then waited for for ever."""
    lines = [*chats(50), chat("hangs", "x", echo="hang")]
    batch = queued(store, tmp_path, lines)
    log = drain(batch.url, tmp_path, engine_stall=timedelta(seconds=1))
    assert "the engine made no progress" in log
    ended = batch.lines()
    assert ended.errors.keys() == {"hangs"}
    assert not ended.lost(lines)


def test_server_errors_are_tried_three_times(store: Store, tmp_path: Path) -> None:
    """Mutant: outcomes.worth_retrying returns False; the request that fails twice then ends as an error."""
    lines = [chat("recovers", "recovers", echo="error500:2"), chat("fails", "x", echo="error500"),
             chat("refused", "x", echo="error400"), *chats(20)]  # fmt: skip
    batch = queued(store, tmp_path, lines)
    drain(batch.url, tmp_path)
    ended = batch.lines()
    assert ended.answers["recovers"] == "recovers"
    assert ended.errors["fails"]["response"]["status_code"] == 500
    assert ended.errors["refused"]["response"]["status_code"] == 400
    assert ended.errors["refused"]["error"] is None
    assert batch.attempts() == {"recovers": 3, "fails": 3, "refused": 1, "r-0": 1}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_request_to_be_tried_again_waits_without_a_place_in_the_engine(
    store: Store, tmp_path: Path
) -> None:
    """There is one place. The others are answered while the first request, which fails thrice, waits twice.

    Mutants: Inflight._answer sleeps no time; the three tries are then over before the others are answered. It keeps
    its place while it sleeps; the others then begin when it is done.
    """
    lines = [chat("fails", "x", echo="error500"), *chats(8)]
    batch = queued(store, tmp_path, lines)
    worker = start_worker(
        batch.url,
        tmp_path,
        drain=True,
        max_inflight=1,
        flush_interval=timedelta(milliseconds=20),
        echo_latency_ms=20,
    )
    try:
        until(lambda: batch.batch.counts.completed + batch.failed() > 0, pause=0.01)
        first = time.monotonic()
        until(lambda: batch.batch.counts.completed == 8 or batch.failed() > 0, pause=0.01)
        assert batch.failed() == 0
        until(lambda: batch.failed() > 0, pause=0.01)
        waited = time.monotonic() - first
        print(f"failed for good {waited:.1f} s after the first answer")
        assert waited > 1, "the two pauses are of 0.5 and of 1 s at least"
        exit_code(worker)
    finally:
        kill(worker)
    assert batch.attempts() == {"fails": 3, "r-0": 1}


def test_engine_that_dies_over_everything_is_given_up(store: Store, tmp_path: Path) -> None:
    """Mutant: WorkLoop without HOPELESS_DEATHS; a broken GPU then convicts every request of the night."""
    lines = [chat(f"p-{i}", "x", echo="exit") for i in range(300)]
    batch = queued(store, tmp_path, lines)
    worker = start_worker(batch.url, tmp_path, drain=True)
    assert exit_code(worker) != 0
    assert batch.failed() <= 4


def test_each_engine_is_loaded_once_for_a_mixed_file(store: Store, tmp_path: Path) -> None:
    """And the answers are in the order of the file. Mutant: answers._merge goes by ``seq``, the order of work."""
    models = ("echo-a", "echo-b", "echo-c")
    lines: list[dict[str, Any]] = [chat(f"r-{i}", f"r-{i}", model=models[i % 3]) for i in range(3000)]
    batch = queued(store, tmp_path, lines)
    log = drain(batch.url, tmp_path, engine=parrot.NAME)
    assert log.count("engine.loaded") == 3
    assert not batch.lines().lost(lines)
    assert [line["custom_id"] for line in batch.output()] == [line["custom_id"] for line in lines]


def test_the_loaded_engine_continues_with_later_batches(store: Store, tmp_path: Path) -> None:
    """Mutant: choosing.choose ignores ``loaded``; the engine of the older batch between them is then loaded first."""
    models = ("echo-a", "echo-b", "echo-a")
    batches = [
        queued(store, tmp_path, chats(300, model=model), name=str(number))
        for number, model in enumerate(models)
    ]
    log = drain(batches[0].url, tmp_path, engine=parrot.NAME)
    assert re.findall(r"engine.loaded model=(\S+)", log) == ["echo-a", "echo-b"]
    for batch in batches:
        assert not batch.lines().lost(chats(300))


def test_priority_goes_first(store: Store, tmp_path: Path) -> None:
    """Mutant: queue.claim orders by batch alone."""
    low = queued(store, tmp_path, chats(2000, prefix="low"), name="low")
    high = queued(store, tmp_path, chats(300, prefix="high"), name="high", priority=5)
    drain(low.url, tmp_path, max_inflight=64)
    assert high.ended_at() < low.ended_at()


def test_how_an_engine_died_is_reported(home: Home) -> None:
    """On the screen of ``status`` and in its document, at once and after the reload.

    Mutant: the note of a worker is its present trouble alone, which the reload ends.
    """
    poison = home.submit([*chats(4), chat("poison", "x", echo="exit")], name="poison")
    with home.worker("--engine", "echo"):
        until(lambda: home.finished(poison) == 5)
        batch_id = home.submit([chat("slow", "x", echo="slow:60")])
        (worker,) = json.loads(home.run("status", batch_id, "--json").stdout)["workers"]
        assert re.match(r"the engine crashed \d times, the last time: .*exit", worker["note"])
        until(lambda: home.worker_log.count("engine.loaded") > home.worker_log.count("engine.died"))
        assert "the engine crashed" in home.run("status", batch_id).stdout


def test_idle_engine_is_unloaded_and_loaded_again(store: Store, tmp_path: Path) -> None:
    """Mutant: WorkLoop._rest never unloads."""
    first = queued(store, tmp_path, chats(5), name="first")
    worker = start_worker(first.url, tmp_path, idle_unload=timedelta(seconds=1))
    log = tmp_path / f"worker-{worker.pid}.log"
    try:
        until(lambda: first.batch.status == "completed")
        until(lambda: "engine.unloaded" in log.read_text())
        second = queued(store, tmp_path, chats(5), name="second")
        until(lambda: second.batch.status == "completed")
        assert log.read_text().count("engine.loaded") == 2
        assert worker.is_alive()
    finally:
        kill(worker)


def test_what_expired_while_no_worker_ran_is_not_begun(store: Store, tmp_path: Path) -> None:
    """Mutant: the loop looks for deadlines only after its first pause of ten seconds."""
    batch = queued(store, tmp_path, chats(2000), expires_in=timedelta(milliseconds=1))
    drain(batch.url, tmp_path, echo_latency_ms=3000)
    assert batch.batch.status == "expired"
    assert batch.batch.counts.completed == 0
