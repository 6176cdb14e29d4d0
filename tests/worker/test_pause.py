"""A pause: what runs finishes, the model is unloaded, the rest waits and continues after it. Real workers."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests.rigs.commands import Home, Lines, chat, chats
from tests.rigs.filling import rows, take_in
from tests.rigs.parrot import PARROT
from tests.rigs.stores import mostly_sqlite as database_url  # noqa: F401  (a fixture)
from tests.rigs.waiting import SILENCE, exit_code, until
from tests.rigs.workers import settings_in
from tests.worker.test_loop import work
from vbatch import pausing
from vbatch.config.pause_hours import parse
from vbatch.engine import Loaded
from vbatch.engine.kinds import KINDS, Load
from vbatch.pausing import NAME, Pause, Reason
from vbatch.store import Store, catalog
from vbatch.worker.context import Context
from vbatch.worker.pause import Pausing
from vbatch.worker.progress import View

RUNNING = "SELECT 1 FROM chunk WHERE state = 'running'"
CRASHES = "SELECT sum(worker_crashes) FROM chunk"
SAVED = "SELECT 1 FROM result"
FEW_AT_ONCE = ("--engine", "echo", "--max-inflight", "4")


def times(home: Home, event: str) -> int:
    return home.worker_log.count(event)


def test_in_the_middle_of_a_batch_running_requests_finish_and_the_rest_waits(
    home: Home, store: Store
) -> None:
    """Mutants: Serving without Draining; no unloading."""
    lines = [chat("quick", "quick"), chat("long", "long", echo="slow:2"), *chats(60)]
    batch_id = home.submit(lines)
    with home.worker(*FEW_AT_ONCE, VBATCH_ECHO_LATENCY_MS="200") as worker:
        until(lambda: rows(store, SAVED) != [])
        pausing.pause(settings_in(home.state_dir), everyone=False, now=False)
        until(lambda: times(home, "engine.unloaded") == 1)
        assert rows(store, RUNNING) == []
        assert "long" in home.run("results", batch_id).stdout
        assert 2 <= home.finished(batch_id) < 62
        until(lambda: any("paused by" in (row[0] or "") for row in rows(store, "SELECT note FROM worker")))
        assert "paused by" in home.run("status", batch_id).stdout
        finished = home.finished(batch_id)
        assert json.loads(home.run("resume", "--json").stdout)["paused"] is None
        until(lambda: home.finished(batch_id) == 62, progress=lambda: home.finished(batch_id))
        assert finished < 62
        until(lambda: home.batch(batch_id)["status"] == "completed")
        worker.send_signal(signal.SIGTERM)
        assert exit_code(worker) == 0
    seen = Lines.of(home.batch(batch_id))
    assert (seen.lost(lines), seen.doubled, seen.errors) == (set(), set(), {})
    assert rows(store, CRASHES) == [(0,)]


def test_now_gives_running_requests_back_and_counts_no_attempt(home: Home, store: Store) -> None:
    """Mutants: ``Draining.over`` that does not ask for ``now``; requests given back as those of a crash."""
    batch_id = home.submit([chat("quick", "quick"), chat("long", "long", echo="slow:60")])
    with home.worker(*FEW_AT_ONCE):
        until(lambda: rows(store, SAVED) != [])
        home.run("pause")
        until(lambda: times(home, "worker.paused") == 1)
        assert times(home, "engine.unloaded") == 0  # it waits for what runs
        home.run("pause", "--now")
        until(lambda: times(home, "engine.unloaded") == 1)
    assert home.finished(batch_id) == 1
    assert rows(store, "SELECT state, worker_crashes, engine_crashes FROM chunk") == [("ready", 0, 0)]


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_it_outlasts_workers_that_are_stopped_and_killed(home: Home) -> None:
    """Mutants: a pause kept in memory; a preload in a pause; a look that comes after the first claim."""
    batch_id = home.submit(chats(3))
    home.run("pause")
    with home.worker(*FEW_AT_ONCE, "--preload", "echo") as worker:
        until(lambda: times(home, "worker.paused") == 1)
        began = time.monotonic()
        worker.send_signal(signal.SIGTERM)
        assert exit_code(worker) == 0
        assert time.monotonic() - began < 20
    with home.worker(*FEW_AT_ONCE) as worker:
        until(lambda: times(home, "worker.paused") == 2)
        worker.kill()
    drained = home.run("run-worker", *FEW_AT_ONCE, "--drain")
    assert "worker.drain_paused" in drained.stderr
    assert home.finished(batch_id) == 0
    with home.worker(*FEW_AT_ONCE, "--preload", "echo") as worker:
        until(lambda: times(home, "worker.paused") == 3)
        assert times(home, "engine.loading") == 0
        home.run("resume")
        until(lambda: home.finished(batch_id) == 3)
    assert times(home, "worker.resumed") == 1


async def when(happened: Callable[[], object]) -> None:
    while not happened():  # noqa: ASYNC110  (what happens is elsewhere)
        await asyncio.sleep(0.05)


BODY = b'{"model": "m", "messages": [{"role": "user", "content": "hello"}], "metadata": {"vbatch_echo": "slow:2"}}'


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_pause_that_is_over_before_the_last_request_leaves_no_chunk_behind(
    context: Context, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Mutants: ``Draining.wanted`` without ``_pausing``: dropped requests keep their lease until the queue is empty;
    ``Serving._stopped`` that limits the waiting for the store at a pause as at a stop.
    """
    caplog.set_level(logging.INFO)
    earlier = threading.enumerate()  # other tests stopped workers
    paths = {name: str(tmp_path / name) for name in ("output_path", "error_path")}
    batch = take_in(store, ["m"] * 600, body=BODY, **paths)

    async def pause_shortly() -> None:
        await when(lambda: context.view.snapshot.running)
        pausing.pause(context.settings, everyone=False, now=False)
        await when(lambda: context.view.snapshot.paused)
        pausing.resume(context.settings, everyone=False)

    work(context, pause_shortly())
    assert catalog.by_pk(store, pk=batch.pk).counts.completed == 600
    assert "chunks.strayed" not in caplog.text
    limits = [
        thread
        for thread in threading.enumerate()
        if isinstance(thread, threading.Timer) and thread not in earlier
    ]
    assert (context.stop.store.is_set(), limits) == (False, [])
    assert "engine.unloaded" in caplog.text


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_load_does_not_outlast_the_beginning_of_a_pause(
    context: Context, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutants: ``_load_as`` without ``pausing``; a load that is tried again in a pause."""
    loads = []

    async def load(load: Load) -> Loaded:
        loads.append(load.model)
        pausing.pause(context.settings, everyone=False, now=False)
        await asyncio.sleep(SILENCE)
        raise AssertionError

    monkeypatch.setitem(KINDS, PARROT.name, replace(PARROT, load=load))
    take_in(store, ["m"])
    work(context)
    assert loads == ["m"]
    assert context.view.snapshot.paused is not None


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_hours_pause_a_worker_and_end_by_themselves(context: Context, store: Store) -> None:
    """Mutant: ``active`` that does not look at the hours."""
    take_in(store, ["m"])
    now = datetime.now().astimezone()
    begin, end = (f"{now + timedelta(minutes=more):%H:%M}" for more in (-60, 60))
    context.settings.__dict__["pause_hours"] = (parse(f"{begin}-{end}"),)
    work(context)
    assert rows(store, SAVED) == []
    assert "pause_hours" in (context.view.snapshot.paused or "")
    later = now + timedelta(hours=1, minutes=1)
    assert pausing.active(context.settings, now=later) is None


def test_what_a_worker_takes_for_a_pause(context: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: a cut-off file that is no pause; root's without effect; an unreadable file that ends one."""
    settings, machine = context.settings, context.settings.state_dir / "etc" / NAME
    monkeypatch.setattr(pausing, "MACHINE_FILE", machine)
    assert pausing.active(settings) is None
    own = settings.state_dir / NAME
    for text in ("", "{", "[]", '{"now": 1, "by": "a\\u001b[2J", "since": 7}'):
        own.write_text(text)
        found = pausing.active(settings)
        assert found is not None
        assert (found.reason, found.now) == (Reason.ACCOUNT, False)
        assert "\x1b" not in found.words
    pausing.pause(settings, everyone=False, now=False)
    first = pausing.active(settings)
    pausing.pause(settings, everyone=True, now=True)
    found = pausing.active(settings)
    assert first is not None
    assert found is not None
    assert (found.reason, found.now, found.remedy) == (Reason.MACHINE, True, "sudo vbatch resume --all")
    assert machine.stat().st_mode & 0o777 == 0o644
    assert own.stat().st_mode & 0o777 == 0o600
    assert first.since is not None
    assert datetime.now(UTC) - first.since < timedelta(minutes=5)
    pausing.pause(settings, everyone=False, now=True)
    pausing.resume(settings, everyone=True)
    again = pausing.active(settings)
    assert again is not None
    assert (again.since, again.now) == (first.since, True)  # asked again, it keeps its time
    worker, view = Pausing(), View()
    worker.look(settings, view)
    own.unlink()
    own.mkdir()
    worker.look(settings, view)
    assert _of(worker, view) == (again, again.words)
    own.rmdir()
    worker.look(settings, view)
    assert _of(worker, view) == (None, None)


def _of(worker: Pausing, view: View) -> tuple[Pause | None, str | None]:
    return worker.active, view.snapshot.note
