"""A store file that is moved, deleted, replaced, overwritten or restored under a worker: it waits, and continues."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from contextlib import closing
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests.rigs.commands import chats
from tests.rigs.queued import Queued, queued
from tests.rigs.waiting import until
from tests.rigs.workers import exit_code, failures, kill, start_worker
from vbatch.store import Store

REQUESTS = 2000


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "vbatch.db"


@pytest.fixture
def file_store(path: Path) -> Iterator[Store]:
    store = Store(f"sqlite:///{path}")
    store.prepare()
    yield store
    store.close()


def log_of(worker: ForkServerProcess, folder: Path) -> str:
    return (folder / f"worker-{worker.pid}.log").read_text()


def waits(worker: ForkServerProcess, folder: Path, words: str) -> None:
    """Wait until the worker says that it waits for this; it does not end meanwhile."""
    until(lambda: words in log_of(worker, folder) or not worker.is_alive())
    assert worker.is_alive(), log_of(worker, folder)[-3000:]


def copy(path: Path, target: Path) -> Path:
    """Copy a store as a backup does, at a moment between two transactions."""
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as backup:
        source.backup(backup)
    return target


def working(batch: Queued, folder: Path, *, drain: bool = True) -> ForkServerProcess:
    worker = start_worker(batch.url, folder, drain=drain, max_inflight=32, echo_latency_ms=20)
    until(lambda: batch.batch.counts.completed > 0)
    return worker


def assert_whole(batch: Queued, expected: list[dict[str, object]], folder: Path) -> None:
    lines = batch.lines()
    assert not failures(folder)
    assert not lines.lost(expected)
    assert not lines.doubled
    assert not lines.errors
    assert all(answer == custom_id for custom_id, answer in lines.answers.items())


def bring_back(worker: ForkServerProcess, folder: Path) -> None:
    """Do what the worker says that brings a deleted file back."""
    said = log_of(worker, folder)
    command = said.rpartition("bring it back with ")[2].partition(", or ")[0]
    subprocess.run(command, shell=True, check=True)


@pytest.mark.parametrize("what", ["file", "folder"])
def test_a_store_that_is_moved_and_brought_back(
    path: Path, file_store: Store, tmp_path: Path, what: str
) -> None:
    """Mutant: DatabaseFile.require_same does nothing; the worker then ends with the file "read-only"."""
    expected = chats(REQUESTS)
    batch = queued(file_store, tmp_path, expected)
    worker = working(batch, tmp_path)
    place = path if what == "file" else path.parent
    try:
        elsewhere = tmp_path / "elsewhere"
        place.rename(elsewhere)
        waits(worker, tmp_path, f"was moved to {elsewhere}" if what == "file" else f"{place} is not there")
        assert not path.exists(), "an empty one was made in its place"
        before = (elsewhere if what == "file" else elsewhere / path.name).stat()
        said = log_of(worker, tmp_path).count("store.waiting")
        until(lambda: log_of(worker, tmp_path).count("store.waiting") > said + 3)
        after = (elsewhere if what == "file" else elsewhere / path.name).stat()
        assert before.st_mtime_ns == after.st_mtime_ns, "it wrote into the file that was moved"
        elsewhere.rename(place)
        assert exit_code(worker) == 0
    finally:
        kill(worker)
    log = log_of(worker, tmp_path)
    assert log.count("engine.loaded") == 1, "as in any outage, the engine and the leases are kept"
    assert "store.replaced" not in log
    assert_whole(batch, expected, tmp_path)


def test_a_store_that_is_deleted_can_be_brought_back(path: Path, file_store: Store, tmp_path: Path) -> None:
    """From the worker, which holds it. Mutant: DatabaseFile lets the file go when it is gone; nothing has it then."""
    expected = chats(REQUESTS)
    batch = queued(file_store, tmp_path, expected)
    worker = working(batch, tmp_path)
    file_store.close()
    try:
        path.unlink()
        waits(worker, tmp_path, "was deleted")
        bring_back(worker, tmp_path)
        assert exit_code(worker) == 0
    finally:
        kill(worker)
    file_store.prepare()
    assert "store.replaced" in log_of(worker, tmp_path)
    assert_whole(batch, expected, tmp_path)


def by_rename(backup: Path, path: Path) -> None:
    backup.rename(path)


def after_a_gap(backup: Path, path: Path) -> None:
    path.unlink()
    path.touch()
    path.write_bytes(b"not a database" * 1000)
    path.unlink()
    shutil.copy(backup, path)


def in_place(backup: Path, path: Path) -> None:
    shutil.copyfile(backup, path)


@pytest.mark.parametrize("restore", [by_rename, after_a_gap, in_place])
def test_a_backup_is_restored_under_a_worker(
    path: Path, file_store: Store, tmp_path: Path, restore: Callable[[Path, Path], None]
) -> None:
    """Another batch gets the key of one that was submitted after the backup, and a lease the number of its lease.

    Mutants: a claim that raises no heartbeat, so that nobody notices; Store.prepare without the new life of the
    worker, so that answers to requests of the lost batch are recorded for the other one.
    """
    first = queued(file_store, tmp_path, chats(10), name="first")
    idle = start_worker(first.url, tmp_path, max_inflight=32, echo_latency_ms=20)
    try:
        until(lambda: first.batch.status == "completed")
        backup = copy(path, tmp_path / "backup.db")
        lost = queued(file_store, tmp_path, chats(REQUESTS, prefix="lost"), name="lost")
        until(lambda: lost.batch.counts.completed > 0)
        key = lost.batch.pk
        restore(backup, path)
        file_store.prepare()
        expected = chats(REQUESTS)
        again = queued(file_store, tmp_path, expected, name="again")
        assert again.batch.pk == key
        until(
            lambda: again.batch.status == "completed" or not idle.is_alive(),
            progress=lambda: again.batch.counts,
        )
        assert idle.is_alive()
        assert_whole(again, expected, tmp_path)
        assert first.batch.status == "completed"
        assert "store.replaced" in log_of(idle, tmp_path)
    finally:
        kill(idle)
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
