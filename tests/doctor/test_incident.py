"""The incident that vbatch exists to end, replayed: real processes, and a stand-in driver with its very numbers."""

from __future__ import annotations

import json
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from tests.rigs import engines
from tests.rigs.commands import Home, Lines, chats
from tests.rigs.nvml import GIB, StandInDriver
from tests.rigs.postgres import Postgres
from tests.rigs.proxy import Mood, Proxy
from tests.rigs.waiting import until
from vbatch.store import COMMAND_PATIENCE, Store
from vbatch.system.files import SUFFIX
from vbatch.worker import models

HELD = round(14.37 * GIB)  # 1.2 of 15.57 GiB are free


@pytest.fixture
def store(home: Home) -> Store:
    store = Store(home.database_url, patience=COMMAND_PATIENCE)
    store.prepare()
    return store


def examined(home: Home, *arguments: str, code: int) -> dict[str, Any]:
    done = home.run("doctor", *arguments, "--json", check=False)
    assert done.returncode == code, done.stdout + done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["exit_code"] == code
    return document


def levels(document: dict[str, Any]) -> dict[str, str]:
    return {finding["id"]: finding["level"] for finding in document["findings"]}


@pytest.mark.usefixtures("gpu_build")
def test_the_full_gpu_is_explained_and_freed(home: Home, store: Store, driver: StandInDriver) -> None:
    """Mutant: ``Repair.carry_out`` that does not end the process, or a memory check that does not look anew."""
    with engines.orphan() as engine, engines.orphan() as foreign:
        engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=home.state_dir)
        driver.has((engine.pid, HELD))

        before = examined(home, "gpu", code=1)
        assert levels(before)["gpu.orphan"] == "fail"
        orphan = next(finding for finding in before["findings"] if finding["id"] == "gpu.orphan")
        assert f"process {engine.pid}" in orphan["what"]
        assert "14.4 GiB" in orphan["what"]
        assert before["next"] == "vbatch doctor --fix"
        assert engine.alive()  # without --fix nothing is changed

        after = examined(home, "gpu", "--fix", "--yes", code=0)
        assert levels(after)["gpu.orphan"] == "fixed"
        repaired = next(finding for finding in after["findings"] if finding["id"] == "gpu.orphan")
        assert "14.4 GiB of GPU memory came back" in repaired["what"]
        assert levels(after)["gpu.memory"] == "ok"
        assert not engine.alive()
        assert foreign.alive()


@pytest.mark.usefixtures("gpu_build")
def test_a_gpu_that_no_worker_uses_may_be_small_and_full(
    home: Home, store: Store, driver: StandInDriver
) -> None:
    """A second card for the screen. Mutant: ``of_the_worker`` that returns every GPU."""
    home.extra["VBATCH_GPU"] = "0"
    driver.says("gpu", f"total {16 * GIB}", "gpu", f"total {2 * GIB}", f"leak {GIB}")
    found = examined(home, "gpu", code=0)["findings"]
    said = {finding["what"][:5]: finding["level"] for finding in found if finding["id"] == "gpu.memory"}
    assert said == {"GPU 0": "ok", "GPU 1": "info"}
    home.extra["VBATCH_GPU"] = "1"
    assert levels(examined(home, "gpu", code=1))["gpu.memory"] == "fail"


def test_nothing_is_repaired_where_nobody_was_asked(home: Home, store: Store, driver: StandInDriver) -> None:
    with engines.orphan() as engine:
        engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=home.state_dir)
        driver.has((engine.pid, HELD))
        done = home.run("doctor", "gpu", "--fix", check=False)
        assert done.returncode == 1
        assert "--yes" in done.stderr
        assert engine.alive()


def test_force_clear_does_not_ask_how_much_is_free(home: Home, store: Store, driver: StandInDriver) -> None:
    """Nor does it repair anything else. Mutant: it carries out every repair unasked."""
    with engines.orphan() as engine:
        engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=home.state_dir)
        driver.has((engine.pid, GIB // 2))
        left = home.path / f".batch_1.x{SUFFIX}"
        left.touch()
        home.submit(chats(1))
        said = levels(examined(home, "gpu", "queue", "--force-clear", code=0))
        assert not engine.alive()
        assert (said["gpu.orphan"], said["queue.leftovers"]) == ("fixed", "warn")
        assert left.exists()


@pytest.mark.usefixtures("gpu_build")
def test_a_foreign_holder_is_named_and_never_touched(home: Home, store: Store, driver: StandInDriver) -> None:
    """Mutant: ending whoever holds memory. It has the title of an engine and no parent, as ours would."""
    with engines.orphan() as foreign:
        driver.has((foreign.pid, HELD))
        document = examined(home, "gpu", "--fix", "--yes", "--force-clear", code=1)
        assert foreign.alive()
        memory = next(finding for finding in document["findings"] if finding["id"] == "gpu.memory")
        assert memory["level"] == "fail"
        assert "1.20 of 15.57 GiB free" in memory["what"]
        assert str(foreign.pid) in memory["why"]
        assert not any("--fix" in command for command in memory["commands"])


@pytest.mark.parametrize(("wanted", "code"), [("1", 0), ("2", 1)])
def test_min_free_gb_is_demanded(
    home: Home, store: Store, driver: StandInDriver, wanted: str, code: int
) -> None:
    with engines.child() as holder:
        driver.has((holder.pid, HELD))
        examined(home, "gpu", "--min-free-gb", wanted, code=code)


def test_the_worker_clears_the_gpu_by_itself(home: Home, store: Store, driver: StandInDriver) -> None:
    """What doctor does by hand, the worker does before it loads. Mutant: no ``orphans.clear`` in ``recover``."""
    with engines.orphan() as engine:
        engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=home.state_dir)
        driver.has((engine.pid, HELD))
        batch = home.submit(lines := chats(20))
        home.run("run-worker", "--engine", "echo", "--drain")
        assert not engine.alive()
        assert not Lines.of(home.batch(batch)).lost(lines)


@pytest.mark.usefixtures("gpu_build")
def test_the_worker_does_not_load_into_too_little_memory(
    home: Home, store: Store, driver: StandInDriver
) -> None:
    """Three attempts, then the words of doctor, and 69. Mutant: no ``memory_check.require`` before the load."""
    with engines.child() as desktop:
        driver.has((desktop.pid, HELD))
        batch = home.submit(chats(1, model="smol"))
        done = home.run("run-worker", "--drain", check=False)
        assert done.returncode == 69, done.stderr
        assert "has 1.20 of 15.57 GiB free; 14.45 GiB would be needed" in done.stderr
        assert f"(pid {desktop.pid}, user" in done.stderr
        assert done.stderr.count("engine.start_failed") == models.ATTEMPTS == 3
        assert timedelta(seconds=10) == models.PAUSE
        first, second, third = re.findall(r"^(\S+) warning engine.start_failed", done.stderr, re.MULTILINE)
        for earlier, later in ((first, second), (second, third)):  # as those of the incident's own script
            assert datetime.fromisoformat(later) - datetime.fromisoformat(earlier) >= models.PAUSE
        assert "Traceback" not in done.stderr
        assert home.batch(batch)["status"] == "in_progress"  # nothing failed: it waits for a free GPU
        assert desktop.alive()


@pytest.mark.usefixtures("gpu_build")
def test_one_gpu_has_one_worker(home: Home, store: Store, driver: StandInDriver) -> None:
    """Mutant: no lock."""
    driver.has()
    with home.worker("--gpu", "0") as first:
        lock = home.path / "state" / "vbatch" / "gpu-0.lock"
        until(lambda: lock.exists() and lock.read_text() == str(first.pid))
        done = home.run("run-worker", "--drain", "--gpu", "0", check=False)
        assert done.returncode == 69
        assert f"process {first.pid}" in done.stderr
        assert first.poll() is None


def test_doctor_is_useful_without_a_gpu(home: Home, store: Store) -> None:
    """A laptop, CI: it says what it skipped, and all is well. The real library may be there; then this says nothing."""
    home.extra["LD_LIBRARY_PATH"] = os.devnull
    document = examined(home, "gpu", "queue", code=0)
    assert levels(document)["gpu.none"] == "skip"


@pytest.mark.usefixtures("gpu_build")
def test_the_whole_incident_in_one_command(
    home: Home, store: Store, driver: StandInDriver, postgres: Postgres, tmp_path: Path
) -> None:
    """The database late, the GPU full of our own orphan, the neighbour healthy: repaired, told, and worked on.

    Mutants: no waiting for what passes; no repair; one try for the neighbour.
    """
    if store.file is not None:
        pytest.skip("a file is never late")
    # Before the power went: a batch, half answered by a worker of an earlier boot.
    batch = home.submit(lines := chats(600))
    with home.worker("--engine", "echo", "--max-inflight", "8", VBATCH_ECHO_LATENCY_MS="100") as worker:
        until(lambda: home.finished(batch) > 50)
        worker.kill()
        worker.wait()
    saved = home.finished(batch)
    _let_it_be_of_an_earlier_boot(store)

    # After it: an orphan that was born since, as in the incident, and everything else a person would see.
    proxy = Proxy(postgres.socket)
    proxy.mood = Mood.ACCEPT_AND_CLOSE
    database = store.url.database
    home.database_url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{database}?sslmode=disable"
    (tmp_path / "config" / "vbatch").mkdir(parents=True, exist_ok=True)
    with engines.orphan() as engine, label_studio() as url:
        engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=home.state_dir)
        driver.has((engine.pid, HELD))
        (tmp_path / "config" / "vbatch" / "config.toml").write_text(
            f'[doctor.neighbours]\nlabel-studio = "{url}"\n'
        )
        late = threading.Timer(5, lambda: setattr(proxy, "mood", Mood.STARTING_UP))
        there = threading.Timer(9, lambda: setattr(proxy, "mood", Mood.FORWARD))
        late.start()
        there.start()
        groups = ("store", "host", "queue", "gpu", "neighbours")
        done = home.run("doctor", *groups, "--fix", "--yes", "--wait", "60s", check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        assert not engine.alive()
    assert "waiting: the store" in done.stderr.lower()
    assert "14.4 GiB of GPU memory came back" in done.stdout
    assert "label-studio is healthy" in done.stdout
    assert "leave it alone" in done.stdout
    told = f"; {saved} of 600 requests are saved; nothing was lost; the work continues when a worker runs"
    assert told in done.stdout
    assert done.stdout.splitlines()[-1] == "next: vbatch run-worker --engine echo"

    home.run("run-worker", "--engine", "echo", "--drain")
    answered = Lines.of(home.batch(batch))
    assert not answered.lost(lines)
    assert not answered.doubled
    proxy.close()


def _let_it_be_of_an_earlier_boot(store: Store) -> None:
    """A test cannot reboot its machine: what the killed worker wrote down gets the boot id of another boot."""
    store.write(lambda connection: connection.execute(text("UPDATE worker SET boot_id = 'the boot before'")))


@pytest.mark.usefixtures("gpu_build")
def test_a_ledger_that_cannot_be_read_is_said_and_waited_for(
    home: Home, store: Store, driver: StandInDriver, postgres: Postgres
) -> None:
    """The incident itself. Mutants: an unread ledger taken for an empty one, our own engine then gets a kill command;
    no ``after`` of gpu.holders, ``doctor gpu --fix --wait`` then ends before the store is there.
    """
    if store.file is not None:
        pytest.skip("a file is never late")
    proxy = Proxy(postgres.socket)
    proxy.mood = Mood.ACCEPT_AND_CLOSE
    home.database_url = f"postgresql://postgres@127.0.0.1:{proxy.port}/{store.url.database}?sslmode=disable"
    with engines.orphan() as engine:
        engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=home.state_dir)
        driver.has((engine.pid, HELD))
        document = examined(home, "gpu", "--fix", "--yes", code=75)
        said = levels(document)
        assert (said["gpu.orphan"], said["gpu.unproven"], said["gpu.memory"]) == ("skip", "warn", "fail")
        assert f"kill {engine.pid}" not in json.dumps(document)
        assert "left behind by a dead worker" not in json.dumps(document["findings"])
        assert engine.alive()
        threading.Timer(3, lambda: setattr(proxy, "mood", Mood.FORWARD)).start()
        examined(home, "gpu", "--fix", "--yes", "--wait", "60s", code=0)
        assert not engine.alive()
    proxy.close()


@contextmanager
def label_studio() -> Iterator[str]:
    """A stand-in for the neighbour of the incident, whose health page said UP all the time."""

    class Health(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b'{"status": "UP"}')

        def log_message(self, *_arguments: object) -> None:
            """Say nothing."""

    with HTTPServer(("127.0.0.1", 0), Health) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}/health"
        server.shutdown()
