"""What can be seen of a process in /proc is what psutil, an independent reader, sees."""

from __future__ import annotations

import os
import subprocess
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

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


def test_a_name_may_hold_what_ends_a_line_for_python(tmp_path: Path) -> None:
    """Mutant: ``splitlines``; a process gives itself another field of its status."""
    program = tmp_path / "a\x1cUid:\t7\t7"
    program.symlink_to("/bin/sleep")
    with subprocess.Popen([program, "600"]) as child:
        try:
            described = processes.describe(child.pid)
            assert described is not None
            assert described.name == program.name
        finally:
            child.kill()
