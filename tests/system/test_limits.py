"""Which limit an error comes from: real ones, each in a process of its own that has the limit."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.rigs.disk import Unavailable, small_disk
from tests.rigs.memory_group import memory_group, start_in
from vbatch.system import cgroups, limits

_BEGIN = """
import os, resource, subprocess, sys, threading
from pathlib import Path
from vbatch.system import limits
def limit(which, value): resource.setrlimit(which, (value, value))
def hold(): threading.Event().wait(60)
try:
    {what}
except BaseException as error:
    found = limits.reached(error)
    print(type(error).__name__, found.code, found.message, found.hint, sep="|", flush=True)
os._exit(0)
"""
_THREADS = "[threading.Thread(target=hold, daemon=True).start() for _ in range(5000)]"


def reached(what: str) -> list[str]:
    """Return what a process found that came to a limit: the error, then code, message and hint."""
    done = subprocess.run(
        [sys.executable, "-c", _BEGIN.format(what=what)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stdout, done.stderr
    return done.stdout.rstrip("\n").split("|")


def test_memory_that_the_process_may_not_have() -> None:
    """Mutant: no case for MemoryError: "unexpected MemoryError: ", please report it."""
    error, code, message, hint = reached("limit(resource.RLIMIT_AS, 1 << 28); bytearray(1 << 29)")
    assert (error, code, hint) == ("MemoryError", "out_of_memory", "ulimit -v unlimited")
    assert message == "out of memory: this process may take 0.2 GiB of address space"


def test_threads_that_do_not_fit_into_the_memory() -> None:
    """Mutant: no case for the RuntimeError of a thread."""
    error, code, message, hint = reached(f"limit(resource.RLIMIT_AS, 1 << 28); {_THREADS}")
    assert (error, code, hint) == ("RuntimeError", "out_of_memory", "ulimit -v unlimited")
    assert message.startswith("a thread cannot be started: ")


def test_threads_and_processes_that_the_user_may_not_have() -> None:
    """Mutants: no look at RLIMIT_NPROC; EAGAIN of a fork is taken for a lock, "resource temporarily unavailable"."""
    if os.geteuid() != 0:
        pytest.skip("changes to another user, which needs root")
    for what in (_THREADS, "subprocess.Popen(['true'])"):
        found = reached(f"limit(resource.RLIMIT_NPROC, 1); os.setuid(54321); {what}")
        assert (found[1], found[3]) == ("processes", "ulimit -u")
        assert "this user may have 1 processes and threads" in found[2]


def test_a_lock_is_no_limit() -> None:
    """Mutant: every EAGAIN is one."""
    assert limits.reached(BlockingIOError(errno.EAGAIN, "it is locked")) is None


def test_files_that_the_process_may_not_open() -> None:
    found = reached("limit(resource.RLIMIT_NOFILE, 9); [open('/dev/null') for _ in range(9)] + [hold()]")
    error, code, message, hint = found
    assert (error, code, hint) == ("OSError", "open_files", "ulimit -n 65536")
    assert message == "/dev/null: this process has too many files open; 9 are allowed"


@pytest.fixture
def few_inodes(tmp_path: Path) -> Iterator[Path]:
    try:
        with small_disk(tmp_path, megabytes=6, inodes=20) as mounted:
            yield mounted
    except Unavailable as reason:
        pytest.skip(str(reason))


@pytest.mark.root
def test_inodes_that_are_used_up(few_inodes: Path) -> None:
    """Mutant: no look at them: a disk with free bytes is called full."""
    with suppress(OSError):
        for number in range(30):
            (few_inodes / str(number)).touch()
    with pytest.raises(OSError, match="No space left") as full:
        (few_inodes / "one more").touch()
    found = limits.reached(full.value)
    assert found is not None
    assert (found.code, found.hint) == ("no_inodes", f"df -i {Path(full.value.filename).parent}")
    assert found.message.startswith(f"{full.value.filename}: no inodes are left")
    (few_inodes / "1").write_bytes(bytes(1000))
    with pytest.raises(OSError, match="No space left") as full:
        (few_inodes / "1").write_bytes(bytes(9 << 20))
    (few_inodes / "2").unlink()
    found = limits.of_files(errno.ENOSPC, str(few_inodes / "1"))
    assert found is not None
    assert (found.code, found.hint) == ("disk_full", f"df -h {few_inodes / '1'}")


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.EDQUOT, "disk_quota", "/x/y: the disk quota is used up"),
        (errno.EROFS, "read_only", "/x/y: its file system is mounted read-only"),
        (errno.ENFILE, "open_files", "/x/y: the machine has too many files open"),
    ],
)
def test_limits_of_files(number: int, code: str, words: str) -> None:
    found = limits.reached(OSError(number, os.strerror(number), "/x/y"))
    assert found is not None
    assert (found.code, found.message) == (code, words)


def test_what_caused_an_error_is_named() -> None:
    """Mutant: only the last error of a chain is looked at. An error that hides its context has hidden it."""

    def fail() -> None:
        try:
            raise MemoryError
        except MemoryError as cause:
            raise RuntimeError("it failed") from cause

    def hide() -> None:
        try:
            raise MemoryError
        except MemoryError:
            raise ValueError("it is empty") from None

    with pytest.raises(RuntimeError) as failed:
        fail()
    assert limits.reached(failed.value) is not None
    with pytest.raises(ValueError, match="empty") as failed_silently:
        hide()
    assert limits.reached(failed_silently.value) is None


def test_the_memory_of_a_control_group_is_named() -> None:
    """Of version 2, or 1, whichever this machine has. Mutant: cgroups that read one version alone."""
    with memory_group(512 << 20) as group:
        process = start_in(group, _BEGIN.format(what="raise MemoryError"))
        said, _ = process.communicate()
    error, code, message, hint = said.rstrip("\n").split("|")
    assert (error, code) == ("MemoryError", "out_of_memory")
    assert message == f"out of memory: the group {group.name} may take 0.5 GiB"
    assert hint.startswith(f"cat {group}/memory.")


def test_control_groups_of_both_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a container, whose own tree begins below the path that it is told.

    Mutants: the outermost limit first; version 1's number for "no limit" taken for one; processes that are not yet
    used up called that.
    """
    proc, top = tmp_path / "proc", tmp_path / "cgroup"
    (proc / str(os.getpid())).mkdir(parents=True)
    monkeypatch.setattr(cgroups, "_PROC", proc)
    monkeypatch.setattr(cgroups, "_CGROUPS", top)

    def write(path: str, value: str) -> Path:
        file = top / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n")
        return file

    own = proc / str(os.getpid()) / "cgroup"
    assert cgroups.memory() is None
    own.write_text("5:pids:/a/b\n4:cpu,memory:/a/b\n0::/a/b\n")
    write("memory/a/b/memory.limit_in_bytes", "9223372036854771712")
    outer = write("memory/memory.limit_in_bytes", "2147483648")
    found = cgroups.memory()
    assert found is not None
    assert (found.file, found.most) == (outer, 2 << 30)
    inner = write("memory/a/memory.limit_in_bytes", "1073741824")
    found = cgroups.memory()
    assert found is not None
    assert (found.group, found.file) == ("a", inner)
    write("pids/a/b/pids.max", "10")
    write("pids/a/b/pids.current", "8")
    assert cgroups.processes_used_up() is None
    write("pids/a/b/pids.current", "9")
    used_up = cgroups.processes_used_up()
    assert used_up is not None
    assert used_up.most == 10
    newest = write("a/memory.max", "536870912")
    found = cgroups.memory()
    assert found is not None
    assert found.file == newest


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            ImportError("libtorch_cpu.so: failed to map segment from shared object"),
            "a library cannot be loaded",
        ),
        (ImportError("libc10.so: cannot allocate memory in static TLS block"), "a library cannot be loaded"),
        (SystemError("<built-in function loads> returned NULL without exception set"), "out of memory"),
    ],
)
def test_errors_that_memory_has_under_another_name(error: Exception, words: str) -> None:
    """Mutants: no case for ImportError; none for SystemError."""
    found = limits.reached(error)
    assert found is not None
    assert (found.code, found.message.partition(":")[0]) == ("out_of_memory", words)
    assert limits.reached(ImportError("cannot import name 'x'")) is None
    assert limits.reached(SystemError("bad argument to internal function")) is None
