"""The schema: made once, by one process, at no cost when current, never by an older vbatch."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import quote

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import ColumnElement, Connection, inspect
from sqlmodel import SQLModel

from tests.rigs.postgres import Postgres
from tests.store.filling import count, rows, take_in
from vbatch.errors import StoreMisconfigured
from vbatch.store import Store, registry, tables
from vbatch.store.database import migrate


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


def test_the_migrations_make_what_the_tables_say(empty_url: str, tmp_path: Path) -> None:
    store = Store(empty_url)
    store.prepare()
    made = store.read(lambda connection: set(inspect(connection).get_table_names()))
    assert made == {table.name for table in SQLModel.metadata.tables.values()} | {"alembic_version"}
    if (
        store.file is not None
    ):  # Alembic cannot compare expression indexes there; the statements themselves can be
        other = Store(f"sqlite:///{tmp_path}/made-by-the-metadata.db")
        other.write(SQLModel.metadata.create_all)
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
    return list(compare_metadata(context, SQLModel.metadata))


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
    """A store of the first version, with a worker in it, is migrated to the newest one."""
    store = Store(empty_url)
    store.write(lambda connection: upgrade(connection, migrate.REVISIONS[0]))
    store.write(
        lambda connection: connection.exec_driver_sql(
            "INSERT INTO worker (id, host, boot_id, pid_namespace, pid, start_ticks, engine, beat, started_at, beat_at)"
            " VALUES ('worker_1', 'h', 'b', 1, 2, 3, 'echo', 4, '2026-11-23 12:00:00', '2026-11-23 12:00:00')"
        )
    )
    store.prepare()
    assert revisions(store) == [(migrate.CURRENT,)]
    (worker,) = registry.live(store)
    assert (worker.id, worker.beat, worker.requests_per_second) == ("worker_1", 4, None)
    if store.file is not None:
        assert store.file.with_name("vbatch.db.before-0001.bak").exists()
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


def test_a_sqlite_file_is_backed_up_before_it_is_migrated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "a #1 100%20?"  # a place that no URL takes as it is
    path = folder / "vbatch.db"
    store = Store(f"sqlite:///{quote(str(path))}")
    store.prepare()
    take_in(store, 3)
    store.write(
        lambda connection: connection.exec_driver_sql("UPDATE alembic_version SET version_num = '0000'")
    )
    monkeypatch.setattr(migrate, "REVISIONS", ("0000", *migrate.REVISIONS))
    with pytest.raises(Exception, match="0000"):  # there is no script 0000 to continue from
        store.prepare()
    assert [place.name for place in tmp_path.iterdir()] == [folder.name]
    backup = folder / "vbatch.db.before-0000.bak"
    assert backup.stat().st_mode & 0o777 == 0o600
    with sqlite3.connect(backup) as copy:
        assert copy.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert copy.execute("SELECT count(*) FROM request").fetchone() == (3,)
    assert count(store, "request") == 3
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
