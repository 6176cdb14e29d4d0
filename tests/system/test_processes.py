"""What can be seen of a process in /proc is what psutil, an independent reader, sees."""

from __future__ import annotations

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from tests.rigs import engines
from tests.rigs.waiting import until
from vbatch.system import processes


@pytest.fixture
def long_name(tmp_path: Path) -> Path:
    """A program whose name is longer than the 15 characters that the kernel keeps."""
    program = tmp_path / "text-generation-server"
    program.symlink_to("/bin/sleep")
    return program


def test_a_process_is_described_as_psutil_does(long_name: Path) -> None:
    """Mutant: the kernel's name alone; holders.py then does not know the program."""
    with subprocess.Popen([long_name, "600"]) as child:
        try:
            seen = psutil.Process(child.pid)
            until(lambda: seen.status() == psutil.STATUS_SLEEPING)
            with seen.oneshot():
                assert processes.describe(child.pid) == processes.Description(
                    pid=child.pid,
                    name="text-generation-server",
                    title=" ".join(seen.cmdline()),
                    user=seen.username(),
                    state=seen.status(),
                    cgroup=processes.cgroup(child.pid),
                )
                assert processes.owner(child.pid) == seen.uids().effective
                assert processes.resident_memory(child.pid) == pytest.approx(seen.memory_info().rss, rel=0.5)
            age = processes.age(child.pid)
            assert age is not None
            assert timedelta(0) <= age < timedelta(minutes=1)
            assert child.pid in processes.pids()
        finally:
            child.kill()


def test_a_zombie_has_no_identity_but_a_state() -> None:
    """Mutant: a zombie counts as alive; its worker is waited for, for ever."""
    with subprocess.Popen(["/bin/true"]) as child:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert processes.identify(child.pid) is None
        described = processes.describe(child.pid)
        assert described is not None
        assert (described.state, described.title) == ("zombie", "true")


def test_of_one_that_is_gone_there_is_nothing_to_see() -> None:
    with subprocess.Popen(["/bin/true"]) as child:
        pass
    assert processes.describe(child.pid) is None
    assert processes.owner(child.pid) is None
    assert processes.age(child.pid) is None
    assert (processes.title(child.pid), processes.resident_memory(child.pid)) == ("", 0)


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


def test_a_file_that_is_closed_meanwhile_hides_no_other() -> None:
    """As the folder of descriptors itself, here. Mutant: the error of one of them ends the look at its process."""
    read_end, write_end = os.pipe()
    try:
        open_files = processes.open_files(Path(f"/proc/{os.getpid()}"))
        first, _ = next(open_files)
        closed = sorted(str(number) for number in (read_end, write_end))
        assert first.name < closed[0]
        os.close(int(closed[0]))
        assert closed[1] in {descriptor.name for descriptor, _ in open_files}
    finally:
        os.close(int(closed[1]))


def test_a_process_that_has_ended_has_no_open_files() -> None:
    """Mutant: an error, in a list of all processes."""
    assert not list(processes.open_files(Path("/proc/0")))
