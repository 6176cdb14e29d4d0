"""The file of a SQLite store is moved, deleted, replaced or restored while it is open; a server's database too."""

from __future__ import annotations

import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import Connection, text, update

from tests.rigs.filling import answers_to, take_in, worker
from vbatch.errors import ExitCode, StoreMisconfigured, StoreReplaced, StoreUnreachable
from vbatch.store import NO_PATIENCE, Patience, Store, catalog, queue, registry
from vbatch.store.database import store as module
from vbatch.store.database.backends import journals
from vbatch.store.tables import WORKER

ENDLESS = Patience(limit=None, pause=timedelta(seconds=0.1))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "store" / "vbatch.db"


@pytest.fixture
def opened(path: Path) -> Iterator[Store]:
    """A store that waits for nothing, with one batch."""
    store = Store(f"sqlite:///{path}", patience=NO_PATIENCE)
    store.prepare()
    take_in(store)
    yield store
    store.close()


def copy(path: Path, target: Path) -> Path:
    with closing(sqlite3.connect(path)) as source, closing(sqlite3.connect(target)) as backup:
        source.backup(backup)
    return target


def test_a_file_that_was_moved_is_named_with_its_place(path: Path, opened: Store, tmp_path: Path) -> None:
    """Mutant: no look at the path before a transaction; reads are then answered from the moved file."""
    path.rename(tmp_path / "elsewhere.db")
    with pytest.raises(StoreUnreachable) as gone:
        catalog.recent(opened, limit=1)
    assert f"{path} was moved to {tmp_path}/elsewhere.db" in gone.value.message
    assert gone.value.hint == f"mv {tmp_path}/elsewhere.db {path}"
    assert gone.value.exit_code is ExitCode.STORE_UNREACHABLE
    assert not path.exists()
    (tmp_path / "elsewhere.db").rename(path)
    assert len(catalog.recent(opened, limit=9)) == 1


def test_a_folder_that_disappears_is_named(path: Path, opened: Store, tmp_path: Path) -> None:
    """Mutant: the store makes its folder again, and an empty file in it."""
    path.parent.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreUnreachable, match=f"the folder {path.parent} is not there"):
        take_in(opened)
    assert not path.parent.exists()


def test_what_a_moved_file_took_is_not_stored(path: Path, opened: Store, tmp_path: Path) -> None:
    """It is moved in the middle of a transaction, whose COMMIT reaches it. Mutant: no look after the transaction."""

    def work(connection: Connection) -> None:
        connection.execute(update(WORKER).values(heartbeat=1))
        connection.execute(text("CREATE TABLE scribble (n INTEGER)"))
        path.rename(tmp_path / "elsewhere.db")

    with pytest.raises(StoreUnreachable, match="was moved to"):
        opened.write(work)


def test_another_file_is_not_taken_for_the_store(path: Path, opened: Store, tmp_path: Path) -> None:
    """Before it is opened by will. Mutant: ``require_same`` without the comparison."""
    copy(path, tmp_path / "backup.db").rename(path)
    with pytest.raises(StoreReplaced, match=f"{path} was replaced by another file"):
        take_in(opened)
    opened.prepare()
    take_in(opened)
    assert len(catalog.recent(opened, limit=9)) == 2


def test_the_number_of_a_deleted_inode_is_not_reused(path: Path, opened: Store, tmp_path: Path) -> None:
    """Mutant: the file's numbers are kept without a descriptor that holds it; ext4 gives them to the next file."""
    backup = copy(path, tmp_path / "backup.db")
    for _ in range(3):
        path.unlink()
        with pytest.raises(StoreUnreachable, match="was deleted"):
            take_in(opened)
        shutil.copy(backup, path)
        with pytest.raises(StoreReplaced):
            take_in(opened)
        opened.prepare()


def test_a_worker_waits_for_a_good_file(path: Path, tmp_path: Path) -> None:
    """Mutants: a file in its place that is no store ends it with 78; an empty one gets tables, under who fills it."""
    said: list[str] = []
    store = Store(f"sqlite:///{path}", patience=ENDLESS, on_wait=lambda reason, _: waited(reason))
    store.prepare()
    backup = copy(path, tmp_path / "backup.db")

    def waited(reason: str | None) -> None:
        said.append(reason or "back")
        match len(said):
            case 1:
                path.write_bytes(b"")
            case 2:
                assert path.stat().st_size == 0
                path.write_bytes(b"no database " * 1000)
            case 3:
                path.write_bytes(backup.read_bytes()[:20_000])
            case 4:
                shutil.copy(backup, path)

    (tmp_path / "other").write_bytes(b"x")
    (tmp_path / "other").rename(path)
    with pytest.raises(StoreReplaced):
        take_in(store)
    path.unlink()
    store.prepare()
    assert "was moved or deleted" in said[0]
    assert "is empty" in said[1]
    assert "not a SQLite database" in said[2]
    assert "is damaged" in said[3]
    assert said[-1] == "back"
    take_in(store)
    store.close()


def test_damage_that_lasts_ends_the_waiting(
    path: Path, opened: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A command does not wait at all. Mutants: it does; a worker waits for ever for what no restore will end."""
    store = Store(f"sqlite:///{path}", patience=ENDLESS)
    store.prepare()
    content = path.read_bytes()
    counter = b"\xff" * 4  # of changes: else what is cached is still good
    path.write_bytes(content[:24] + counter + content[28:100] + b"\xff" * (len(content) - 100))
    with pytest.raises(StoreMisconfigured, match="damaged"):
        take_in(opened)
    monkeypatch.setattr(module, "LONGEST_RESTORE", timedelta(seconds=0.5))
    with pytest.raises(StoreMisconfigured, match="damaged"):
        take_in(store)
    path.write_bytes(content)
    take_in(store)
    store.close()


_INTERRUPTED = """
import os, signal, sqlite3, sys
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size=1")
database.execute("BEGIN IMMEDIATE")
database.execute("PRAGMA user_version=7")
database.execute("CREATE TABLE scribble (n BLOB)")
database.executemany("INSERT INTO scribble VALUES (?)", [(b"x" * 9000,)] * 100)
os.kill(os.getpid(), signal.SIGKILL)
"""


def interrupt(path: Path) -> None:
    """Leave a journal as a process does that is killed in a transaction."""
    killed = subprocess.run([sys.executable, "-c", _INTERRUPTED, path], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert journals.of(path).stat().st_size > 10_000


def test_the_own_journal_is_used(path: Path, opened: Store) -> None:
    """Mutant: every journal is taken for a foreign one; what a killed process began would stay in the file."""
    opened.close()
    interrupt(path)
    assert not journals.is_foreign(path)
    take_in(opened)
    assert len(catalog.recent(opened, limit=9)) == 2
    assert not journals.of(path).exists()


def test_the_journal_of_another_database_is_refused(path: Path, opened: Store, tmp_path: Path) -> None:
    """Mutant: no look at it; SQLite then writes pages of the newer file into the backup, and damages it."""
    backup = copy(path, tmp_path / "backup.db")
    for _ in range(9):
        take_in(opened)
    opened.close()
    interrupt(path)
    backup.rename(path)
    whole = path.read_bytes()
    fresh = Store(f"sqlite:///{path}", patience=ENDLESS)
    with pytest.raises(StoreMisconfigured, match="was left by another database") as refused:
        fresh.prepare()
    assert path.read_bytes() == whole
    assert refused.value.hint
    subprocess.run(refused.value.hint, shell=True, check=True)
    fresh.prepare()
    assert len(catalog.recent(fresh, limit=99)) == 1
    fresh.close()


# Of both kinds: a store that is an older state of itself.


def test_a_store_without_its_tables_is_waited_for(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A restore has dropped them. Mutants: "please report it"; new tables, which the restore then meets."""
    monkeypatch.setattr(store, "_patience", NO_PATIENCE)
    store.write(lambda connection: connection.execute(text("ALTER TABLE alembic_version RENAME TO away")))
    store.write(lambda connection: connection.execute(text("ALTER TABLE blocked RENAME TO blocked_away")))
    with pytest.raises(StoreReplaced, match="tables"):
        store.read(lambda connection: connection.execute(text("SELECT * FROM blocked")).all())
    with pytest.raises(StoreUnreachable, match="holds no tables of vbatch any more"):
        store.prepare()
    store.write(lambda connection: connection.execute(text("ALTER TABLE blocked_away RENAME TO blocked")))
    store.write(lambda connection: connection.execute(text("ALTER TABLE away RENAME TO alembic_version")))
    store.prepare()
    take_in(store)


def test_a_worker_that_the_store_does_not_know_gets_nothing(store: Store) -> None:
    """Mutant: a claim without a look at its row; no worker would ever reclaim those chunks."""
    take_in(store)
    for call in (
        lambda: queue.claim(store, worker="worker_0", models=["m"], chunks=1, held=()),
        lambda: registry.heartbeat(store, worker="worker_0", models=(), note=None),
    ):
        with pytest.raises(StoreReplaced, match="does not know this worker"):
            call()


def test_a_store_that_was_set_back_is_noticed_by_each_claim(store: Store) -> None:
    """A claim counts as a heartbeat. Mutant: it does not; leases of before and after have the same numbers."""
    take_in(store, 600)
    who = worker(store)
    reached: list[int] = []
    before = store.read(
        lambda connection: connection.execute(text("SELECT heartbeat FROM worker")).scalar_one()
    )
    leases = queue.claim(
        store, worker=who, models=["m"], chunks=1, held=(), heartbeat=before, on_heartbeat=reached.append
    )
    assert leases
    store.write(lambda connection: connection.execute(update(WORKER).values(heartbeat=before)))
    with pytest.raises(StoreReplaced, match="a backup was restored"):
        queue.claim(store, worker=who, models=["m"], chunks=1, held=(), heartbeat=reached[-1])
    with pytest.raises(StoreReplaced, match="a backup was restored"):
        registry.heartbeat(store, worker=who, models=(), note=None, known=reached[-1])
    assert queue.flush(store, worker=who, results=answers_to(leases[0])).recorded
