"""A file that vbatch writes is whole under its name, or it is not there; and what was there stays."""

from __future__ import annotations

import errno
import fcntl
import os
import signal
import socket
import stat
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from vbatch.system import files
from vbatch.system.files import abandoned, atomic_file, replace_text, temporary_name

_WRITER = """
import sys, time
from pathlib import Path
from vbatch.system.files import atomic_file
with atomic_file(Path(sys.argv[1]), tag="batch_1") as file:
    file.write(b"half\\n" * 300_000)
    print("writing", flush=True)
    time.sleep(60)
"""


def write(path: Path, content: bytes, *, tag: str = "batch_1") -> Path:
    with atomic_file(path, tag=tag) as file:
        file.write(content)
    return file.path


def fail_to_write(path: Path) -> None:
    """Begin to write, and meet a full disk."""
    with suppress(OSError), atomic_file(path, tag="batch_1") as file:
        file.write(b"li")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_it_appears_whole(tmp_path: Path) -> None:
    assert write(tmp_path / "out.jsonl", b"line\n") == tmp_path / "out.jsonl"
    assert (tmp_path / "out.jsonl").read_bytes() == b"line\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.jsonl"]


def test_the_same_bytes_may_be_written_again(tmp_path: Path) -> None:
    for _ in range(2):
        assert write(tmp_path / "out.jsonl", b"line\n") == tmp_path / "out.jsonl"


def test_another_file_is_never_overwritten(tmp_path: Path) -> None:
    """Mutant: os.rename, which overwrites."""
    (tmp_path / "out.jsonl").write_bytes(b"mine\n")
    assert write(tmp_path / "out.jsonl", b"line\n") == tmp_path / "out.batch_1.jsonl"
    assert (tmp_path / "out.jsonl").read_bytes() == b"mine\n"
    assert (tmp_path / "out.batch_1.jsonl").read_bytes() == b"line\n"


def test_a_link_to_nothing_is_another_file(tmp_path: Path) -> None:
    """Mutant: a comparison that raises for what cannot be read; the batch then never ends."""
    (tmp_path / "out.jsonl").symlink_to(tmp_path / "nothing")
    assert write(tmp_path / "out.jsonl", b"line\n") == tmp_path / "out.batch_1.jsonl"


@pytest.mark.parametrize("links", [1, 2])
def test_what_a_killed_writer_left_is_not_truncated(tmp_path: Path, links: int) -> None:
    """Killed between link and unlink: the temporary name leads to the output file itself.

    Mutant: truncating what has the temporary name; the next writer empties the whole file, and fails.
    """
    path = tmp_path / "out.jsonl"
    temporary = temporary_name(path, "batch_1")
    temporary.write_bytes(b"line\n")
    if links == 2:
        os.link(temporary, path)
    fail_to_write(path)
    assert (path.read_bytes() if links == 2 else b"line\n") == b"line\n"
    assert sorted(found.name for found in tmp_path.iterdir()) == ["out.jsonl"] * (links - 1)
    assert write(path, b"line\n") == path


def test_a_file_that_is_finished_as_we_open_it_is_not_truncated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two finalize at once: one opened the temporary file, the other finished it before it was locked.

    Mutant: no look whether the locked file still has the temporary name.
    """
    path = tmp_path / "out.jsonl"
    finished: list[bytes] = []
    really_lock = fcntl.flock

    def lock(handle: int, how: int) -> None:
        if not finished:
            os.write(handle, b"line\n")
            temporary_name(path, "batch_1").rename(path)
            finished.append(path.read_bytes())
        really_lock(handle, how)

    monkeypatch.setattr(fcntl, "flock", lock)
    fail_to_write(path)
    assert path.read_bytes() == finished[0]


def test_both_names_taken(tmp_path: Path) -> None:
    for name in ("out.jsonl", "out.batch_1.jsonl"):
        (tmp_path / name).write_bytes(b"mine\n")
    with pytest.raises(FileExistsError):
        write(tmp_path / "out.jsonl", b"line\n")
    assert {path.read_bytes() for path in tmp_path.iterdir()} == {b"mine\n"}


def test_an_error_leaves_nothing(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), atomic_file(tmp_path / "out.jsonl", tag="batch_1") as file:
        file.write(b"half")
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("size", [1, 3 * files.BUFFER])
def test_a_disk_that_refuses_is_reported_with_the_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """At its end, or in the middle. Mutant: the kernel's words alone: which of a batch's disks is full?."""
    full = os.open("/dev/full", os.O_WRONLY)
    monkeypatch.setattr(os, "dup", lambda _handle: full)
    with pytest.raises(OSError, match="No space left") as refused:
        write(tmp_path / "a", b"x" * size)
    assert refused.value.filename == str(tmp_path / "a")


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        write(tmp_path / "none" / "out.jsonl", b"line\n")


def test_a_killed_writer_leaves_no_file_and_the_next_one_writes_it(tmp_path: Path) -> None:
    """Mutants: writing under the final name; no lock on the temporary file, so that two write it at once."""
    path = tmp_path / "out.jsonl"
    with subprocess.Popen([sys.executable, "-c", _WRITER, path], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert not path.exists()
        with pytest.raises(BlockingIOError):
            write(path, b"line\n")
        assert abandoned(tmp_path) == []  # it is being written
        os.kill(writer.pid, signal.SIGKILL)
    assert not path.exists()
    assert abandoned(tmp_path) == [temporary_name(path, "batch_1")]
    write(path, b"line\n")
    assert path.read_bytes() == b"line\n"
    assert abandoned(tmp_path) == []


def test_a_name_of_any_length(tmp_path: Path) -> None:
    """Mutant: a temporary name that is made of the whole name."""
    path = tmp_path / ("名" * 85)  # 255 bytes
    with atomic_file(path, tag="batch_" + "0" * 24) as file:
        file.write(b"whole")
    assert path.read_bytes() == b"whole"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_settings_file_is_replaced_with_its_mode(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: int
) -> None:
    """Whatever the umask, and before its content. Mutants: the mode by umask; ``chmod`` after the writing."""
    path = tmp_path / "new folder/worker.env"
    modes: list[int] = []
    really_write = files.AtomicFile.write

    def look(file: files.AtomicFile, data: bytes) -> None:
        (draft,) = path.parent.glob(".*")
        modes.append(stat.S_IMODE(draft.stat().st_mode))
        really_write(file, data)

    monkeypatch.setattr(files.AtomicFile, "write", look)
    before = os.umask(0o077)
    try:
        for text in ("A=1\n", "B=2 ü\n"):
            replace_text(path, text, mode=mode)
            assert path.read_text(encoding="utf-8") == text
            assert stat.S_IMODE(path.stat().st_mode) == mode
    finally:
        os.umask(before)
    assert modes == [mode, mode]
    assert list(path.parent.iterdir()) == [path]


def test_a_lock_ends_with_its_block(tmp_path: Path) -> None:
    """Mutant: no ``LOCK_NB``; two workers on one GPU wait for each other instead of a refusal."""
    with files.locked(tmp_path / "gpu-0.lock", wait=False):
        with pytest.raises(BlockingIOError), files.locked(tmp_path / "gpu-0.lock", wait=False):
            pass
        assert not files.remove_unless_locked(tmp_path / "gpu-0.lock")
    with files.locked(tmp_path / "gpu-0.lock", wait=True):
        pass
    assert files.remove_unless_locked(tmp_path / "gpu-0.lock")
    assert not (tmp_path / "gpu-0.lock").exists()


def plant(place: Path, kind: str, victim: Path) -> None:
    """Put something that is no file of vbatch's where one will be written, as another user of the folder can."""
    match kind:
        case "link":
            victim.write_text("precious")
            place.symlink_to(victim)
        case "dangling":
            place.symlink_to(victim)
        case "FIFO":
            os.mkfifo(place)
        case "socket":
            with socket.socket(socket.AF_UNIX) as listener:
                listener.bind(str(place))
        case "folder":
            place.mkdir()


@pytest.mark.parametrize("kind", ["link", "dangling", "FIFO", "socket", "folder"])
def test_what_is_planted_in_the_way_is_named(tmp_path: Path, kind: str) -> None:
    """It is not followed, not waited for, not removed. Mutants: no O_NOFOLLOW; no O_NONBLOCK, which hangs for ever."""
    place, victim = temporary_name(tmp_path / "out.jsonl", "batch_1"), tmp_path / "victim"
    plant(place, kind, victim)
    with pytest.raises(files.NotAFile, match="is in the way; remove it") as refused:
        write(tmp_path / "out.jsonl", b"line\n")
    assert refused.value.filename == str(place)
    assert os.path.lexists(place)
    assert not (tmp_path / "out.jsonl").exists()
    assert (victim.read_text() if victim.exists() else None) == ("precious" if kind == "link" else None)
    assert abandoned(tmp_path) == []


@pytest.mark.parametrize("kind", ["link", "dangling", "FIFO", "socket"])
def test_an_output_s_name_that_is_taken_by_another_thing(tmp_path: Path, kind: str) -> None:
    """The lines appear beside it. Mutant: filecmp without a look at what the other one is."""
    plant(tmp_path / "out.jsonl", kind, tmp_path / "victim")
    assert write(tmp_path / "out.jsonl", b"line\n") == tmp_path / "out.batch_1.jsonl"
    assert files.kind_of(tmp_path / "out.jsonl") is not None
    assert not (tmp_path / "victim").exists() or (tmp_path / "victim").read_text() == "precious"


def test_a_file_with_a_second_name_is_not_written_to(tmp_path: Path) -> None:
    """A hard link to somebody's empty file. Mutant: an existing file is opened and filled."""
    victim = tmp_path / "victim"
    victim.touch()
    temporary_name(tmp_path / "out.jsonl", "batch_1").hardlink_to(victim)
    write(tmp_path / "out.jsonl", b"line\n")
    assert victim.read_bytes() == b""


@pytest.mark.parametrize("kind", ["link", "FIFO"])
def test_a_lock_is_a_file(tmp_path: Path, kind: str) -> None:
    plant(tmp_path / "lock", kind, tmp_path / "victim")
    with pytest.raises(files.NotAFile), files.locked(tmp_path / "lock", wait=False):
        pass
