"""A SQLite file, as doctor finds it: missing, damaged, locked, in the wrong mode, not ours to write."""

from __future__ import annotations

import os
import signal
import sqlite3
import struct
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from tests.doctor.test_store import examined, failure
from tests.rigs.commands import Home
from vbatch.doctor.checks import sqlite
from vbatch.doctor.findings import Level, exit_code
from vbatch.errors import ExitCode
from vbatch.store import COMMAND_PATIENCE, Store
from vbatch.store.database.backends.sqlite import examine


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "vbatch.db"
    store = Store(f"sqlite:///{path}", patience=COMMAND_PATIENCE)
    store.prepare()
    store.close()
    return path


def test_no_file_is_no_fault_and_stays_none(tmp_path: Path) -> None:
    findings = examined(f"sqlite:///{tmp_path / 'none' / 'vbatch.db'}")
    assert findings[0].id == "store.empty"
    assert exit_code(findings) is ExitCode.DONE
    assert not (tmp_path / "none").exists()


def test_a_damaged_file(file: Path, tmp_path: Path) -> None:
    """Bytes in its middle are turned over. Mutants: no quick_check; a story, or a word of the queue, all the same."""
    with sqlite3.connect(file) as connection:
        connection.executemany(
            "INSERT INTO request VALUES (1, ?, 1, 'x', ?)", ((n, b"x" * 500) for n in range(500))
        )
    size = file.stat().st_size
    with file.open("r+b") as stream:
        for offset in range(size // 2, size, 16384):
            stream.seek(offset // 16384 * 16384)
            stream.write(b"\xff" * 64)
    assert failure(f"sqlite:///{file}").id == "store.damaged"
    home = Home(tmp_path, f"sqlite:///{file}")
    said = home.run("doctor", "store", "host", "queue", check=False).stdout
    assert "needs a sound store" in said
    assert "nothing" not in said
    assert "all there" not in said


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "vbatch.db"
    path.write_bytes(b"dear diary, " * 1000)
    found = failure(f"sqlite:///{path}")
    assert (found.id, found.exit_code) == ("store.not_sqlite", ExitCode.MISCONFIGURED)
    assert path.read_bytes().startswith(b"dear diary")


def test_a_file_that_others_may_read(file: Path) -> None:
    file.chmod(0o644)
    (found,) = [one for one in examined(f"sqlite:///{file}") if one.id == "store.permissions"]
    assert found.level is Level.WARN
    assert found.commands == (f"chmod 600 {file}",)


def test_the_copy_from_before_a_migration_is_listed(file: Path) -> None:
    copy = file.with_name(f"{file.name}.before-0002.bak")
    copy.write_bytes(file.read_bytes())
    (found,) = [one for one in examined(f"sqlite:///{file}") if one.id == "store.durability"]
    assert found.evidence == (f"copy from before a migration: {copy}",)


@pytest.mark.parametrize("safe", [False, True])
def test_wal_where_this_sqlite_can_damage_it(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, safe: bool
) -> None:
    """Another program set the mode. Mutant: a connection that sets it back; without --fix nothing is changed."""
    monkeypatch.setattr("vbatch.store.database.backends.sqlite.wal_is_safe", lambda: safe)
    browser = sqlite3.connect(file)
    browser.execute("PRAGMA journal_mode=WAL")
    browser.close()
    levels = {finding.id: finding.level for finding in examined(f"sqlite:///{file}")}
    assert levels.get("store.journal_mode") == (None if safe else Level.WARN)
    assert levels["store.reach"] is Level.OK
    assert file.read_bytes()[18:20] == b"\x02\x02"  # a look changes nothing: not the mode either
    if not (safe or sqlite3.sqlite_version_info >= (3, 51, 3)):
        home = Home(tmp_path, f"sqlite:///{file}")
        home.run("doctor", "store")
        assert file.read_bytes()[18:20] == b"\x02\x02"
        home.run("doctor", "store", "--fix", "--yes")
        assert file.read_bytes()[18:20] == b"\x01\x01"


def test_wal_that_another_program_keeps(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker could not set the mode back. Mutant: no look at the lock; doctor would call the store well."""
    monkeypatch.setattr("vbatch.store.database.backends.sqlite.wal_is_safe", lambda: False)
    script = (
        "import sqlite3, sys, time\n"
        "browser = sqlite3.connect(sys.argv[1])\n"
        "browser.execute('PRAGMA journal_mode=WAL')\n"
        "browser.execute('SELECT count(*) FROM batch').fetchone()\n"
        "print('open', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, file], stdout=subprocess.PIPE) as browser:
        assert browser.stdout is not None
        browser.stdout.readline()
        findings = examined(f"sqlite:///{file}")
        browser.kill()
    assert [finding.id for finding in findings][:2] == ["store.journal_mode", "store.locked"]
    assert exit_code(findings) is ExitCode.STORE_UNREACHABLE
    assert exit_code(examined(f"sqlite:///{file}")) is ExitCode.DONE  # it was killed, and its -shm is left


def test_a_file_of_half_its_length(file: Path) -> None:
    """Mutant: taking what SQLite raises for a check that crashed; doctor would exit 0."""
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    found = failure(f"sqlite:///{file}")
    assert (found.id, found.exit_code) == ("store.damaged", ExitCode.MISCONFIGURED)
    assert ".recover" in found.commands[0]


def test_a_check_that_raises_is_damage_too(file: Path) -> None:
    with file.open("r+b") as stream:
        stream.truncate(file.stat().st_size // 2)
    seen = examine(file, limit=timedelta(seconds=10))
    assert (seen.damage, seen.read_whole) == ("database disk image is malformed", True)


def test_a_large_file_is_read_for_a_bounded_time(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers wait meanwhile. Mutants: no limit; calling a file whole that was not read."""
    filler = sqlite3.connect(file)
    with filler:
        filler.executemany("INSERT INTO request VALUES (1, ?, 1, 'x', 'x')", ((n,) for n in range(20_000)))
    filler.close()
    monkeypatch.setattr(sqlite, "LONGEST_READ", timedelta(0))
    (found,) = [one for one in examined(f"sqlite:///{file}") if one.id == "store.durability"]
    assert found.level is Level.INFO
    assert "not all read" in found.why


@pytest.mark.parametrize("place", ["file/vbatch.db", "file/below/vbatch.db", "link.db"])
def test_a_place_where_no_file_can_be_made(tmp_path: Path, place: str) -> None:
    """Mutant: "there is no store yet"; a link to a disk that was not mounted would be called well."""
    (tmp_path / "file").write_text("")
    (tmp_path / "link.db").symlink_to("/mnt/not-mounted/vbatch.db")
    found = failure(f"sqlite:///{tmp_path / place}")
    assert (found.id, found.exit_code) == ("store.cannot_open", ExitCode.MISCONFIGURED)


def test_a_folder_that_may_not_be_written(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    if os.access(tmp_path, os.W_OK):
        pytest.skip("root may write anywhere")
    assert failure(f"sqlite:///{tmp_path / 'vbatch.db'}").id == "store.cannot_open"
    tmp_path.chmod(0o700)


def test_commands_can_be_pasted(tmp_path: Path) -> None:
    """Mutant: paths that are not quoted."""
    path = tmp_path / "my batches" / "vbatch.db"
    store = Store(f"sqlite:///{path}", patience=COMMAND_PATIENCE)
    store.prepare()
    store.close()
    path.chmod(0o644)
    (found,) = [one for one in examined(f"sqlite:///{path}") if one.id == "store.permissions"]
    subprocess.run(["bash", "-ec", found.commands[0]], check=True)
    assert path.stat().st_mode & 0o777 == 0o600


def test_a_lock_that_somebody_keeps(file: Path) -> None:
    """A database browser with an open transaction. Mutant: taking it for damage."""
    script = (
        "import sqlite3, sys, time\n"
        "held = sqlite3.connect(sys.argv[1])\n"
        "held.execute('BEGIN EXCLUSIVE')\n"
        "print('held', flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script, file], stdout=subprocess.PIPE) as keeper:
        assert keeper.stdout is not None
        keeper.stdout.readline()
        found = failure(f"sqlite:///{file}")
        os.kill(keeper.pid, signal.SIGKILL)
    assert (found.id, found.passing) == ("store.locked", True)


def test_a_store_that_was_moved_is_named(file: Path) -> None:
    """By what lies beside it. Mutant: no look: "there is no store yet", and the next command makes an empty one."""
    file.with_name(f"{file.name}.migrate.lock").touch()
    file.rename(file.with_name("elsewhere"))
    (found,) = [one for one in examined(f"sqlite:///{file}") if one.id == "store.moved"]
    assert found.level is Level.WARN
    assert found.evidence == (f"{file.name}.migrate.lock was left behind",)
    assert found.commands == (f"ls -la {file.parent}",)
    assert not file.exists()


def test_a_store_that_was_deleted_is_brought_back_from_a_process(file: Path) -> None:
    """Mutant: no look at who holds it."""
    content = file.read_bytes()
    with file.open("rb"):
        file.unlink()
        (found,) = [one for one in examined(f"sqlite:///{file}") if one.id == "store.moved"]
        assert found.evidence == (f"process {os.getpid()} still holds the deleted file",)
        subprocess.run(found.commands[0], shell=True, check=True)
    assert file.read_bytes() == content


def test_the_journal_of_another_database(file: Path) -> None:
    """Mutant: doctor opens the file, and SQLite damages it with the journal."""
    journal = file.with_name(f"{file.name}-journal")
    header = bytes.fromhex("d9d505f920a163d7") + struct.pack(">IIIII", 1, 0, 9, 512, 4096)
    page = bytearray(4096)
    page[24:28] = struct.pack(">I", 987_654)
    journal.write_bytes(header.ljust(512, b"\0") + struct.pack(">I", 1) + page + bytes(4))
    content = file.read_bytes()
    found = failure(f"sqlite:///{file}")
    assert (found.id, found.exit_code) == ("store.foreign_journal", ExitCode.MISCONFIGURED)
    assert found.commands == (f"mv {journal} {journal}.foreign",)
    assert file.read_bytes() == content
