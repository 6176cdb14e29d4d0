"""A command that is run beside the work can hold up nothing, whatever it does."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from tests.rigs.waiting import until
from vbatch.system import commands


def sh(script: str, given: bytes = b"", *, seconds: float = 30) -> tuple[int, str]:
    return commands.run(["sh", "-c", script], given, seconds=seconds)


def test_it_gets_its_input_and_its_exit_code_is_returned(tmp_path: Path) -> None:
    given = b"x" * (1 << 20)
    assert commands.run(["tee", str(tmp_path / "copy")], given, seconds=30) == (0, "")
    assert (tmp_path / "copy").read_bytes() == given
    assert sh("echo first >&2; echo last >&2; exit 3") == (3, "last")


def test_no_shell(tmp_path: Path) -> None:
    """Mutant: shell=True."""
    assert commands.run(["touch", f"{tmp_path}/$(id)"], b"", seconds=30) == (0, "")
    assert [path.name for path in tmp_path.iterdir()] == ["$(id)"]


def test_one_that_reads_nothing_is_no_problem() -> None:
    """Mutant: a pipe for its input, which fills."""
    assert sh("exit 0", b"x" * (1 << 20)) == (0, "")


def test_what_it_prints_is_not_kept() -> None:
    """Mutant: its whole output in memory."""
    code, said = sh("head -c 200000000 /dev/zero; head -c 20000000 /dev/zero | tr '\\0' x >&2; exit 1")
    assert (code, len(said)) == (1, 4096)


def test_at_the_limit_it_ends_with_all_that_it_started(tmp_path: Path) -> None:
    """Mutant: only the process itself is killed."""
    note = tmp_path / "pid"
    with pytest.raises(TimeoutError):
        sh(f"sleep 600 & echo $! >{note}; wait", seconds=1)
    pid = int(note.read_text())
    until(lambda: _is_gone(pid))


def test_one_that_floods_has_a_limit_too() -> None:
    with pytest.raises(TimeoutError):
        sh("exec yes >&2", seconds=0.5)


def test_what_it_leaves_running_holds_up_nothing(tmp_path: Path) -> None:
    """Its stderr stays open. Mutant: reading until its end."""
    note = tmp_path / "pid"
    started = time.monotonic()
    assert sh(f"sleep 600 & echo $! >{note}; echo done >&2") == (0, "done")
    assert time.monotonic() - started < 25
    os.kill(int(note.read_text()), 9)


def test_one_that_closes_its_stderr_is_waited_for() -> None:
    assert sh("exec 2>&-; sleep 0.2; exit 4") == (4, "")


def test_one_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError):
        commands.run(["/nowhere/notify"], b"", seconds=5)


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True
