"""The schema: made once, by one process, at no cost when current, never by an older vbatch."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import ColumnElement, Connection, inspect, text

from tests.rigs import tables as written
from tests.rigs.commands import Home
from tests.rigs.filling import answers_to, claim, count, rows, take_in, worker
from tests.rigs.postgres import Postgres
from vbatch.errors import ExitCode, StoreMisconfigured, StoreUnreachable
from vbatch.protocol import BatchStatus
from vbatch.store import (
    Store,
    catalog,
    crashes,
    finalization,
    queue,
    registry,
    results,
    schema,
    staging,
    tables,
)
from vbatch.store.database import migrate
from vbatch.store.database.backends import copies
from vbatch.system import processes


@pytest.fixture(params=["sqlite", "postgresql"])
def empty_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """The URL of a database without any table, once of each kind."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path}/vbatch.db"
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    postgres.execute("CREATE DATABASE empty TEMPLATE template0")
    yield postgres.url("empty")
    postgres.execute("DROP DATABASE empty WITH (FORCE)")


def revisions(store: Store) -> list[tuple[object, ...]]:
    return rows(store, "SELECT version_num FROM alembic_version")


def test_a_fresh_database_gets_the_schema(empty_url: str) -> None:
    store = Store(empty_url)
    store.prepare()
    assert revisions(store) == [(migrate.CURRENT,)]
    take_in(store, 3)
    store.prepare()
    assert count(store, "request") == 3
    store.close()


def test_a_current_schema_costs_no_import_of_alembic(store: Store) -> None:
    program = (
        "import sys; from vbatch.store import Store; store = Store(sys.argv[1]); store.prepare();"
        "print([name for name in sys.modules if name.split('.')[0] == 'alembic'])"
    )
    url = store.url.render_as_string(hide_password=False)
    done = subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_known_revisions_are_those_of_the_scripts() -> None:
    scripts = ScriptDirectory(str(Path(migrate.__file__).parent / "migrations"))
    found = tuple(script.revision for script in scripts.walk_revisions())[::-1]
    assert found == migrate.REVISIONS
    assert scripts.get_heads() == [migrate.CURRENT]


def test_the_table_objects_are_those_of_the_schema() -> None:
    assert written.FILE.read_text() == written.written(), "run: python -m tests.rigs.tables"


def test_the_migrations_make_what_the_tables_say(empty_url: str, tmp_path: Path) -> None:
    store = Store(empty_url)
    store.prepare()
    made = store.read(lambda connection: set(inspect(connection).get_table_names()))
    assert made == {table.name for table in schema.METADATA.tables.values()} | {"alembic_version"}
    if (
        store.file is not None
    ):  # Alembic cannot compare expression indexes there; the statements themselves can be
        other = Store(f"sqlite:///{tmp_path}/made-by-the-metadata.db")
        other.write(schema.METADATA.create_all)
        assert statements(store) == statements(other)
        other.close()
    else:
        assert store.read(differences) == []
    store.close()


def differences(connection: Connection) -> list[object]:
    """What Alembic would write into a next migration."""
    context = MigrationContext.configure(
        connection, opts={"compare_type": True, "compare_server_default": True}
    )
    return list(compare_metadata(context, schema.METADATA))


def statements(store: Store) -> dict[object, str]:
    """The tables and indexes of a SQLite store as their statements say, white space apart."""
    found = rows(
        store, "SELECT name, sql FROM sqlite_master WHERE sql IS NOT NULL AND name != 'alembic_version'"
    )
    return {name: "".join(sql.split()).replace('"', "") for name, sql in found}


@pytest.mark.parametrize("predicate", [tables.NOT_FINAL, tables.OPEN, tables.READY, tables.RUNNING])
def test_the_partial_indexes_have_the_conditions_that_the_queries_repeat(
    predicate: ColumnElement[bool],
) -> None:
    """Mutant: a query that binds the state as a parameter cannot use its index."""
    condition = str(predicate).partition(".")[2]
    script = Path(migrate.__file__).parent / "migrations" / "versions" / "0001_create_the_tables.py"
    assert f'sqlite_where=sa.text("{condition}")' in script.read_text()
    assert f'postgresql_where=sa.text("{condition}")' in script.read_text()


def test_what_the_first_revision_holds_is_kept(empty_url: str) -> None:
    """A store of the first revision, with a worker in it, is migrated to the newest one."""
    store = Store(empty_url)
    store.write(lambda connection: upgrade(connection, migrate.REVISIONS[0]))
    add(store, "worker", OLD_WORKER | {"id": "worker_1"})
    store.prepare()
    assert revisions(store) == [(migrate.CURRENT,)]
    (found,) = registry.live(store)
    assert (found.id, found.heartbeat, found.requests_per_second) == ("worker_1", 4, None)
    assert (found.engine, found.models, found.gpus) == ("vllm", ("m",), ())
    if store.file is not None:
        assert store.file.with_name("vbatch.db.before-0001.bak").exists()
    store.close()


def test_the_batches_of_the_released_version_are_kept_and_complete(empty_url: str) -> None:
    """Version 0.1.0 left batches in every status, one in the middle: half of its chunk is saved, its worker is dead.

    Mutant: a revision that forgets the results, the numbers of the chunks or that a suspect runs alone.
    """
    store = Store(empty_url)
    make_released_store(store)
    store.prepare()
    assert {batch.id: batch.status for batch in catalog.recent(store, limit=99)} == {
        f"batch_{status}": status for status in BatchStatus if status is not BatchStatus.VALIDATING
    }
    assert rows(
        store, "SELECT number, engine_crashes, worker_crashes, alone FROM chunk WHERE batch = 1 ORDER BY 1"
    ) == [
        (0, 0, 1, False),
        (1, 2, 0, True),
    ]
    assert rows(store, "SELECT finish, cached_tokens FROM result WHERE batch = 1") == [(None, 0)] * 2

    assert crashes.reclaim(store, worker="worker_dead", heartbeat=None) == 1
    assert staging.sweep(store, gone=lambda _submitter: True) == 1
    who = worker(store)
    answered = 0
    while leases := claim(store, who):
        for lease in leases:
            flushed = queue.flush(store, worker=who, results=answers_to(lease))
            assert flushed.finished == {lease.key}
            answered += flushed.recorded
    assert answered == 2 + 1, "the half of one chunk, and the one that runs alone"
    for batch in finalization.to_finalize(store, by=who):
        assert finalization.start_finalizing(store, pk=batch.pk, by=who) is not None
        finalization.finish(store, pk=batch.pk, by=who, output_path="/o", error_path="/e")
    ended = {batch.id: batch for batch in catalog.recent(store, limit=99)}
    done = ended["batch_in_progress"]
    assert (done.status, done.counts.completed, done.counts.total) == (BatchStatus.COMPLETED, 5, 5)
    assert [entry.outcome.body for entry in results.finished(store, pk=done.pk) if entry.outcome is not None] == [
        b'"old"', b'"old"', b'"3"', b'"4"', b'"5"'
    ]  # fmt: skip
    assert ended["batch_finalizing"].status is BatchStatus.COMPLETED
    assert ended["batch_cancelling"].status is BatchStatus.CANCELLED
    assert take_in(store, 1).pk == 10, "the key of a deleted batch is never given again"
    store.close()


OLD_TIME = "2026-11-20 12:00:00"
OLD_WORKER = {
    "id": "worker_dead", "host": "h", "boot_id": "b", "pid_namespace": 1, "pid": 2, "start_ticks": 3,
    "engine": "vllm", "model": "m", "beat": 4, "started_at": OLD_TIME, "beat_at": OLD_TIME,
}  # fmt: skip


def make_released_store(store: Store) -> None:
    """Write what version 0.1.0 left, by its schema and as its rows were."""
    store.write(lambda connection: upgrade(connection, "0002"))
    add(store, "worker", OLD_WORKER)
    add(
        store, "process",
        {"boot_id": "b", "pid": 5, "start_ticks": 6, "pid_namespace": 1, "host": "h", "worker": "worker_dead",
         "title": "vbatch: engine", "cgroup": "/user.slice"},
    )  # fmt: skip
    submitter = json.dumps({"host": "h", "boot_id": "b", "pid_namespace": 1, "pid": 2, "start_ticks": 3})
    statuses = [BatchStatus.IN_PROGRESS, *(one for one in BatchStatus if one is not BatchStatus.IN_PROGRESS)]
    for pk, status in enumerate(statuses, start=1):
        add(
            store, "batch",
            {"pk": pk, "id": f"batch_{status}", "status": str(status), "endpoint": "/v1/chat/completions",
             "model": "m", "name": "old", "priority": 0, "metadata": "{}", "input_sha256": f"sha{pk}",
             "input_bytes": 7, "output_path": f"/o{pk}", "error_path": f"/e{pk}", "total": 5 if pk == 1 else 1,
             "created_at": OLD_TIME, "submitter": submitter if status is BatchStatus.VALIDATING else None},
        )  # fmt: skip
        for seq in range(5 if pk == 1 else 1):
            add(
                store, "request",
                {"batch": pk, "seq": seq, "line": seq + 1, "custom_id": f"r-{seq}", "body": b"{}"},
            )  # fmt: skip
    chunk = {"model": "m", "url": "/v1/chat/completions", "priority": 0, "completed": 0, "epoch": 1, "crashes": 0,
             "losses": 0, "worker": None}  # fmt: skip
    add(
        store, "chunk",
        chunk | {"batch": 1, "n": 0, "first_seq": 0, "last_seq": 3, "state": "running", "total": 4, "completed": 2,
                 "losses": 1, "worker": "worker_dead"},
        chunk | {"batch": 1, "n": 1, "first_seq": 4, "last_seq": 4, "state": "ready", "total": 1, "crashes": 2},
        *(
            chunk | {"batch": pk, "n": 0, "first_seq": 0, "last_seq": 0, "total": 1,
                     "state": "cancelled" if status.startswith(("cancel", "expired")) else "done",
                     "completed": 0 if status.startswith(("cancel", "expired")) else 1}
            for pk, status in enumerate(statuses, start=1)
            if pk > 1 and status is not BatchStatus.VALIDATING
        ),
    )  # fmt: skip
    answered = {"epoch": 1, "status_code": 200, "request_id": "req", "body": b'"old"', "prompt_tokens": 2,
                "completion_tokens": 3, "attempts": 1}  # fmt: skip
    add(store, "result", *(answered | {"batch": 1, "seq": seq} for seq in range(2)))
    if store.file is None:  # PostgreSQL does not count the keys that were given
        store.read(lambda connection: connection.exec_driver_sql("SELECT setval('batch_pk_seq', 9)"))
    else:
        store.write(lambda connection: connection.exec_driver_sql("UPDATE sqlite_sequence SET seq = 9"))


def add(store: Store, table: str, *values: dict[str, Any]) -> None:
    """Insert rows of the same columns as they are."""
    columns, marks = ", ".join(values[0]), ", ".join(f":{name}" for name in values[0])
    statement = text(f"INSERT INTO {table} ({columns}) VALUES ({marks})")
    store.write(lambda connection: connection.execute(statement, values))


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    """A process that does nothing, as a worker of an older version might."""
    process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    yield process
    process.kill()
    process.wait()


def test_a_live_worker_of_the_older_version_is_not_disturbed(
    empty_url: str, tmp_path: Path, sleeper: subprocess.Popen[bytes]
) -> None:
    """The command asks to try again, and names the worker and how to restart it. Mutants: a migration under it;
    doctor that promises one.
    """
    store = Store(empty_url)
    make_released_store(store)
    identity = processes.identify(sleeper.pid)
    assert identity is not None
    add(store, "worker", OLD_WORKER | asdict(identity) | {"id": "worker_live"})
    said = Home(tmp_path, empty_url).run("list", "--json", check=False)
    assert said.returncode == ExitCode.STORE_UNREACHABLE
    error = json.loads(said.stdout)["error"]
    assert f"process {sleeper.pid} on {os.uname().nodename}" in error["message"]
    assert error["hint"] == "press Ctrl-C in the terminal of that worker, then: vbatch run-worker"
    diagnosis = Home(tmp_path, empty_url).run("doctor", "store", check=False)
    assert diagnosis.returncode == ExitCode.STORE_UNREACHABLE, "not that the next command migrates"
    assert error["message"] in " ".join(diagnosis.stdout.split())
    assert error["hint"] in " ".join(diagnosis.stdout.split())
    assert revisions(store) == [("0002",)]
    assert rows(store, "SELECT beat FROM worker") == [(4,), (4,)]
    if store.file is not None:
        assert list(store.file.parent.glob("*.bak")) == []
    sleeper.kill()
    sleeper.wait()
    store.prepare()
    assert revisions(store) == [(migrate.CURRENT,)]
    store.close()


def test_a_submit_of_the_older_version_is_not_disturbed(
    empty_url: str, sleeper: subprocess.Popen[bytes]
) -> None:
    """Its last statement would fail, and a file of many minutes be stored in vain. Mutant: a look at workers alone."""
    store = Store(empty_url)
    make_released_store(store)
    identity = processes.identify(sleeper.pid)
    assert identity is not None
    submitter = "UPDATE batch SET submitter = :submitter WHERE status = 'validating'"
    values = {"submitter": json.dumps(asdict(identity))}
    store.write(lambda connection: connection.execute(text(submitter), values))
    with pytest.raises(StoreUnreachable, match=f"process {sleeper.pid}"):
        store.prepare()
    assert revisions(store) == [("0002",)]
    store.close()


@pytest.mark.parametrize(
    ("group", "command"),
    [
        ("/system.slice/system-vbatch\\x2dworker.slice/vbatch-worker@0.service", "sudo systemctl restart"),
        (
            "/user.slice/user-7.slice/user@7.service/app.slice/vbatch-worker@0.service",
            "systemctl --user restart",
        ),
    ],
)
def test_a_worker_that_systemd_runs_is_restarted_by_it(
    monkeypatch: pytest.MonkeyPatch, sleeper: subprocess.Popen[bytes], group: str, command: str
) -> None:
    """A real process; only its cgroup is chosen here."""
    monkeypatch.setattr(processes, "cgroup", lambda _pid: group)
    identity = processes.identify(sleeper.pid)
    assert identity is not None
    assert migrate._how_to_restart(identity) == f"{command} vbatch-worker@0.service"


def test_a_worker_on_another_host_counts_while_its_heartbeat_is_fresh(empty_url: str) -> None:
    """Mutants: a heartbeat that is not looked at; one that is never too old."""
    store = Store(empty_url)
    make_released_store(store)
    add(
        store,
        "worker",
        OLD_WORKER | {"id": "worker_far", "host": "far/1", "beat_at": datetime.now(UTC).isoformat(" ")},
    )
    with pytest.raises(StoreUnreachable, match="process 2 on far") as refused:
        store.prepare()
    assert "on far" in (refused.value.hint or "")
    at = "UPDATE worker SET beat_at = :at WHERE id = 'worker_far'"
    before = (datetime.now(UTC) - timedelta(minutes=3)).isoformat(" ")
    store.write(lambda connection: connection.execute(text(at), {"at": before}))
    store.prepare()
    assert revisions(store) == [(migrate.CURRENT,)]
    store.close()


def upgrade(connection: Connection, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(migrate.__file__).parent / "migrations"))
    config.attributes["connection"] = connection
    command.upgrade(config, revision)


def test_a_newer_schema_is_refused_with_the_remedy(store: Store) -> None:
    store.write(
        lambda connection: connection.exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
    )
    with pytest.raises(StoreMisconfigured) as refused:
        store.prepare()
    assert "9999" in refused.value.message
    assert refused.value.hint == "pip install --upgrade vbatch"
    assert revisions(store) == [("9999",)]


def prepare_in_a_process(url: str) -> subprocess.CompletedProcess[str]:
    program = "import sys; from vbatch.store import Store; Store(sys.argv[1]).prepare()"
    return subprocess.run([sys.executable, "-c", program, url], capture_output=True, text=True, check=False)


def test_two_processes_at_once_migrate_once(empty_url: str) -> None:
    """Mutant: without the lock one of them fails on a table that the other one has just made."""
    with ThreadPoolExecutor(4) as pool:
        done = list(pool.map(prepare_in_a_process, [empty_url] * 4))
    assert [process.returncode for process in done] == [0] * 4, [process.stderr[-2000:] for process in done]
    store = Store(empty_url)
    assert revisions(store) == [(migrate.CURRENT,)]
    store.close()


def test_a_sqlite_file_is_backed_up_before_it_is_migrated(tmp_path: Path) -> None:
    folder = tmp_path / "a #1 100%20?"  # a place that no URL takes as it is
    path = folder / "vbatch.db"
    store = Store(f"sqlite:///{quote(str(path))}")
    make_released_store(store)
    requests = count(store, "request")
    store.prepare()
    assert [place.name for place in tmp_path.iterdir()] == [folder.name]
    backup = folder / "vbatch.db.before-0002.bak"
    assert backup.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(backup) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT version_num FROM alembic_version").fetchone() == ("0002",)
        assert copy.execute("SELECT count(*) FROM request").fetchone() == (requests,)
    assert count(store, "request") == requests
    store.close()


def test_only_the_newest_copy_of_a_sqlite_file_is_kept(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/vbatch.db")
    make_released_store(store)
    (tmp_path / "vbatch.db.before-0001.bak").write_bytes(b"earlier")
    (tmp_path / "vbatch.db.mine.bak").write_bytes(b"the user's own")
    store.prepare()
    assert {path.name for path in tmp_path.glob("*.bak*")} == {
        "vbatch.db.before-0002.bak",
        "vbatch.db.mine.bak",
    }
    store.close()


def test_a_sqlite_file_without_room_for_a_copy_is_not_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: a copy that fills the disk, or a migration without one."""
    store = Store(f"sqlite:///{tmp_path}/vbatch.db")
    make_released_store(store)
    monkeypatch.setattr(copies, "SPARE", 1 << 60)
    with pytest.raises(StoreMisconfigured, match="must be copied before its tables are changed") as refused:
        store.prepare()
    assert refused.value.exit_code == ExitCode.MISCONFIGURED
    assert refused.value.hint == f"df -h {tmp_path}"
    assert revisions(store) == [("0002",)]
    assert list(tmp_path.glob("*.bak*")) == []
    store.close()


def test_a_new_sqlite_file_is_not_backed_up(tmp_path: Path) -> None:
    store = Store(f"sqlite:///{tmp_path}/vbatch.db")
    store.prepare()
    assert list(tmp_path.glob("*.bak")) == []
    store.close()


def test_a_failed_migration_leaves_the_schema_as_it_was(
    empty_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The whole migration is one transaction, on SQLite too."""

    def fail(connection: Connection) -> None:
        connection.exec_driver_sql("CREATE TABLE half (a integer)")
        raise RuntimeError("halfway")

    monkeypatch.setattr(migrate, "_upgrade", fail)
    store = Store(empty_url)
    with pytest.raises(RuntimeError):
        store.prepare()
    assert store.read(lambda connection: inspect(connection).get_table_names()) == []
    store.close()


@pytest.mark.parametrize("umask", [0o000, 0o022])
def test_the_sqlite_file_is_private(tmp_path: Path, umask: int) -> None:
    """Prompts are private, whatever the umask; so are the folder that vbatch makes and the lock file."""
    old = os.umask(umask)
    try:
        store = Store(f"sqlite:///{tmp_path}/new/folder/vbatch.db")
        store.prepare()
        take_in(store, 3)
    finally:
        os.umask(old)
    path = tmp_path / "new" / "folder" / "vbatch.db"
    assert {file.stat().st_mode & 0o777 for file in path.parent.iterdir()} == {0o600}
    assert path.parent.stat().st_mode & 0o077 == 0
    store.close()
