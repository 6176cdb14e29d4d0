"""Processes as the kernel shows them: which one a pid means, what is above it, and how it is ended."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from tests.rigs import engines
from vbatch.system import processes
from vbatch.system.processes import Ended


def test_a_pid_recycled_in_the_last_moment_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: no second look after pidfd_open in ``end_all``; the first look happens before the pid changes hands."""
    with engines.orphan() as innocent:
        before = replace(innocent.identity, start_ticks=innocent.identity.start_ticks - 1)
        monkeypatch.setattr(processes, "liveness", lambda _identity: processes.Liveness.ALIVE)
        assert processes.end(before) is Ended.ALREADY_GONE
        assert innocent.alive()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a pid namespace")
@pytest.mark.parametrize("inside", [True, False])
def test_a_container_is_known_by_its_pid_namespace(inside: bool) -> None:
    """Mutant: ``among_all`` that is always true; NVML's host pids would name innocents there."""
    asked = [sys.executable, "-c", "from vbatch.system import processes; print(processes.among_all())"]
    command = ["unshare", "--pid", "--fork", "--mount-proc", *asked] if inside else asked
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str(not inside)


def test_those_above() -> None:
    above = processes.ancestors(os.getpid())
    assert above is not None
    assert above[:1] == [pid for pid in [os.getppid()] if pid]
    assert (
        psutil.Process(above[-1] if above else os.getpid()).ppid() == 0
    )  # of init, or of who came in from outside
    assert processes.ancestors(engines.dead_identity().pid) is None


@pytest.mark.parametrize(("line", "condemned"), [("ShdPnd:\t0000000000000100", True), ("ShdPnd:\t0", False)])
def test_a_process_that_was_killed_and_lives(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, line: str, condemned: bool
) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "status").write_text(f"Name:\tpython\n{line}\n")
    monkeypatch.setattr(processes, "_PROC", tmp_path)
    assert processes.is_condemned(7) is condemned


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to drop a right")
def test_what_the_kernel_refuses_to_end_stops_nothing_else() -> None:
    """Root without CAP_KILL, as in a container. Mutant: no ``except PermissionError``; the worker died of it."""
    script = (
        "import sys\n"
        "from vbatch.system import processes\n"
        "identities = [processes.identify(int(pid)) for pid in sys.argv[1:]]\n"
        "print(*processes.end_all(identities).values())\n"
    )
    without = ["setpriv", "--bounding-set=-kill", sys.executable, "-c", script]
    with (
        engines.child("setpriv", "--reuid=65534", "--clear-groups", "sleep", "600") as refused,
        engines.child() as ours,
    ):
        command = [*without, str(refused.pid), str(ours.pid)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.stdout.split() == ["refused", "terminated"], done.stderr
        assert refused.alive()
