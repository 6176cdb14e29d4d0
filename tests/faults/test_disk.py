"""Power cuts, full disks and I/O errors under the store and under the output files: real file systems."""

from __future__ import annotations

import errno
import multiprocessing
import os
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from tests.rigs.commands import VBATCH, Home, Lines, chats
from tests.rigs.disk import Disk, Unavailable, ext4, small_disk
from tests.rigs.filling import count
from tests.rigs.queued import queued
from tests.rigs.waiting import SILENCE, output, until
from tests.rigs.workers import drain, exit_code, failures, kill, start_worker
from vbatch.errors import StoreUnreachable
from vbatch.store import Patience, Store, catalog
from vbatch.system.files import atomic_file

CUTS = 6


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """An ext4 whose power can be cut."""
    try:
        with ext4(tmp_path) as mounted:
            yield mounted
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.fixture
def full_soon(tmp_path: Path) -> Iterator[Path]:
    """A disk of 6 MB."""
    try:
        with small_disk(tmp_path, megabytes=6) as mounted:
            yield mounted
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.root
def test_what_was_acknowledged_survives_power_cuts(disk: Disk, tmp_path: Path) -> None:
    """Submit, work, cut the power, again and again, on one disk.

    Mutant: ``PRAGMA synchronous=NORMAL`` with WAL in store/database/backends/sqlite.py (see the next test).
    """
    expected = chats(6000)
    url = f"sqlite:///{disk.mount_point / 'store' / 'vbatch.db'}"
    home = Home(disk.mount_point, url, {"XDG_STATE_HOME": str(tmp_path), "HOME": str(tmp_path)})
    batch_id = home.submit(expected)
    disk.cut_power()
    assert home.batch(batch_id)["request_counts"] == {"total": 6000, "completed": 0, "failed": 0}
    for cut in range(CUTS):
        worker = start_worker(url, tmp_path, max_inflight=32, echo_latency_ms=20)
        before = home.finished(batch_id)
        until(partial(_has_more, home, batch_id, than=before))
        acknowledged = home.finished(batch_id)
        kill(worker)
        disk.cut_power()
        survived = home.finished(batch_id)
        print(f"cut {cut + 1}: acknowledged {acknowledged}, survived {survived}")
        assert survived >= acknowledged
    drain(url, tmp_path)
    disk.cut_power()
    batch = home.batch(batch_id)
    assert batch["status"] == "completed"
    lines = Lines.of(batch)
    assert not lines.lost(expected)
    assert not lines.doubled
    with sqlite3.connect(disk.mount_point / "store" / "vbatch.db") as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def _has_more(home: Home, batch_id: str, *, than: int) -> bool:
    return home.finished(batch_id) > than


@pytest.mark.root
@pytest.mark.parametrize("mutant", ["", "PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL"])
def test_the_synchronous_setting_is_what_keeps_commits(disk: Disk, mutant: str) -> None:
    """As configured every acknowledged commit survives; the mutant loses some. Both are run, always.

    The power goes while it writes: a ``sync`` of anybody on this machine keeps what was committed before it.
    """
    path = disk.mount_point / "vbatch.db"
    store = Store(f"sqlite:///{path}")
    store.prepare()
    store.close()
    os.sync()
    writing = subprocess.Popen(
        [sys.executable, "-c", COMMIT_FOR_EVER, path, mutant],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert writing.stdout is not None
    for line in writing.stdout:
        acknowledged = int(line)
        if acknowledged == 100:
            disk.stop()
    writing.wait()
    disk.start()
    connection = sqlite3.connect(path)
    survived = connection.execute("SELECT count(*) FROM worker").fetchone()[0]
    connection.close()
    print(f"mutant={mutant!r}: {acknowledged} acknowledged, {survived} survived")
    assert acknowledged >= 100
    assert (survived >= acknowledged) is (mutant == "")


COMMIT_FOR_EVER = """
import sys
from itertools import count
from vbatch.store.database.backends import backend_of
connection = backend_of("sqlite:///" + sys.argv[1]).engine(as_it_is=False).connect()
driver = connection.connection.driver_connection
driver.executescript(sys.argv[2])
for number in count(1):
    driver.execute(
        "INSERT INTO worker"
        " (id, host, boot_id, pid_namespace, pid, start_ticks, engine, heartbeat, started_at, heartbeat_at)"
        f" VALUES ('w{number}', '', '', 0, 0, 0, 'echo', 0, '2026-01-01', '2026-01-01')"
    )
    print(number, flush=True)
"""


@pytest.mark.root
def test_output_file_is_whole_after_a_power_cut(disk: Disk) -> None:
    """Mutants: no fsync of the file (it is empty), no fsync of the folder (it has its temporary name).

    The cut comes as soon as the file is said to be written: the kernel writes by itself what is given time.
    """
    target = disk.mount_point / "prompts.output.jsonl"
    os.sync()
    context = multiprocessing.get_context("fork")
    written = context.Event()
    writing = context.Process(target=_write_and_wait, args=(target, written))
    writing.start()
    assert written.wait(SILENCE)
    writing.kill()
    writing.join()
    disk.cut_power()
    assert target.read_bytes() == b"a line\n" * 10_000
    assert [path.name for path in disk.mount_point.iterdir() if "vbatch-tmp" in path.name] == []


def _write_and_wait(target: Path, written: Event) -> None:
    with atomic_file(target, tag="batch_x") as file:
        file.write(b"a line\n" * 10_000)
    written.set()
    time.sleep(60)


@pytest.mark.root
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_full_disk_under_the_output_is_waited_for(store: Store, full_soon: Path, tmp_path: Path) -> None:
    """Mutant: Finalizer lets OSError end the worker."""
    ballast = full_soon / "ballast"
    expected = chats(3000)
    batch = queued(store, full_soon, expected)
    _fill(ballast)
    worker = start_worker(batch.url, tmp_path, drain=True)
    log = tmp_path / f"worker-{worker.pid}.log"
    try:
        until(lambda: log.exists() and "batch.output_refused" in log.read_text())
        assert "the disk is full" in log.read_text()
        assert not Path(batch.batch.output_path).exists()
        assert batch.batch.status == "finalizing"
        ballast.unlink()
        assert exit_code(worker) == 0
    finally:
        kill(worker)
    assert not failures(tmp_path)
    assert not batch.lines().lost(expected)
    assert not [path.name for path in full_soon.iterdir() if path.name.endswith(".vbatch-tmp")]


def _fill(ballast: Path) -> None:
    """Write until the disk is full to its last page."""
    with ballast.open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError as error:
            if error.errno != errno.ENOSPC:
                raise


@pytest.mark.root
def test_full_disk_under_the_store_is_waited_for(full_soon: Path, tmp_path: Path) -> None:
    """Mutant: faults._SQLITE_PASSING without SQLITE_FULL; the worker then ends with a traceback."""
    store = Store(f"sqlite:///{full_soon / 'vbatch.db'}")
    store.prepare()
    expected = chats(2000)
    batch = queued(store, tmp_path, expected)
    ballast = full_soon / "ballast"
    _fill(ballast)
    worker = start_worker(batch.url, tmp_path, drain=True)
    log = tmp_path / f"worker-{worker.pid}.log"
    try:
        until(lambda: log.exists() and "store.waiting" in log.read_text())
        ballast.unlink()
        assert exit_code(worker) == 0
    finally:
        kill(worker)
    store.close()
    assert not failures(tmp_path)
    assert not batch.lines().lost(expected)


@pytest.mark.root
def test_submit_into_a_full_disk_leaves_nothing(full_soon: Path, tmp_path: Path) -> None:
    """Mutant: ingest without remove_rows in its ``finally``."""
    patience = Patience(limit=timedelta(seconds=1), pause=timedelta(milliseconds=200))
    store = Store(f"sqlite:///{full_soon / 'vbatch.db'}", patience=patience)
    store.prepare()
    with pytest.raises(StoreUnreachable, match="full"):
        queued(store, tmp_path, chats(60_000))
    assert catalog.recent(store, limit=9) == []
    assert [count(store, table) for table in ("batch", "chunk", "request", "result")] == [0, 0, 0, 0]
    assert len(queued(store, tmp_path, chats(300)).id) > 0
    store.close()


@pytest.mark.root
def test_submit_waits_for_room(full_soon: Path, tmp_path: Path) -> None:
    """It says what it waits for, and goes on by itself. Mutant: faults._SQLITE_PASSING without SQLITE_FULL."""
    home = Home(tmp_path, f"sqlite:///{full_soon / 'vbatch.db'}")
    home.run("list")
    ballast = full_soon / "ballast"
    _fill(ballast)
    said = tmp_path / "stderr"
    with said.open("wb") as stderr:
        submitting = subprocess.Popen(
            [*VBATCH, "submit", home.write("prompts", chats(2000))],
            env=home.env,
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=stderr,
            text=True,
        )
        try:
            until(lambda: "full" in said.read_text())
            assert submitting.poll() is None
            ballast.unlink()
            out, _ = output(submitting)
        finally:
            submitting.kill()
            submitting.wait()
    assert submitting.returncode == 0
    assert home.batch(out.strip())["request_counts"] == {"total": 2000, "completed": 0, "failed": 0}


@pytest.mark.root
def test_disk_that_becomes_read_only_is_named_and_loses_nothing(disk: Disk, tmp_path: Path) -> None:
    """The store is on it; commands wait for it too, and doctor names it. The worker is killed, the disk repaired.

    Mutants: Sqlite.diagnose without ``_on_a_read_only_disk`` (the file "cannot be opened"); disks.mount_of that
    knows ``ro`` alone, where the kernel has ``emergency_ro``.
    """
    expected = chats(1000)
    home = Home(tmp_path, f"sqlite:///{disk.mount_point / 'vbatch.db'}")
    batch_id = home.submit(expected)
    worker = start_worker(home.database_url, tmp_path, max_inflight=16, echo_latency_ms=50)
    log = tmp_path / f"worker-{worker.pid}.log"
    try:
        until(lambda: home.finished(batch_id) > 16)
        disk.fail()
        until(lambda: "store.waiting" in log.read_text())
        assert "its file system is read-only" in log.read_text()
        assert "cannot be opened" not in log.read_text()
        found = home.run("doctor", "host", check=False)
        assert f"{disk.mount_point} is mounted read-only; it holds store" in found.stdout
        assert worker.is_alive()
    finally:
        kill(worker)
    assert not failures(tmp_path)
    saved = home.finished(batch_id)
    disk.start()
    assert home.finished(batch_id) == saved
    drain(home.database_url, tmp_path)
    lines = Lines.of(home.batch(batch_id))
    assert not lines.lost(expected)
    assert not lines.doubled


@pytest.mark.root
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_output_folder_that_is_read_only_is_waited_for(store: Store, disk: Disk, tmp_path: Path) -> None:
    """Mutant: Finalizer lets OSError end the worker."""
    expected = chats(300)
    batch = queued(store, disk.mount_point, expected)
    subprocess.run(["mount", "-o", "remount,ro", disk.mount_point], check=True)
    worker = start_worker(batch.url, tmp_path, drain=True)
    log = tmp_path / f"worker-{worker.pid}.log"
    try:
        until(lambda: log.exists() and "batch.output_refused" in log.read_text())
        assert "its file system is mounted read-only" in log.read_text()
        subprocess.run(["mount", "-o", "remount,rw", disk.mount_point], check=True)
        assert exit_code(worker) == 0
    finally:
        kill(worker)
    assert not batch.lines().lost(expected)


@pytest.mark.root
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_full_state_folder_is_waited_for_before_a_load(store: Store, full_soon: Path, tmp_path: Path) -> None:
    """Mutant: models._load lets the OSError of ``evidence.leave`` end the worker."""
    expected = chats(30)
    batch = queued(store, tmp_path, expected)
    ballast = full_soon / "ballast"
    _fill(ballast)
    home = Home(tmp_path, batch.url, {"VBATCH_STATE_DIR": str(full_soon)})
    with home.worker("--engine", "echo", "--drain") as worker:
        until(lambda: "engine.state_refused" in home.worker_log)
        assert "No space left on device" in home.worker_log
        assert not list((full_soon / "engines").glob("*"))
        ballast.unlink()
        until(lambda: worker.poll() is not None)
        assert worker.returncode == 0
    assert not batch.lines().lost(expected)
