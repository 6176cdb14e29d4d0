"""Only the process that is meant is ended, and a refusal of the kernel stops nothing else."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace

import pytest

from tests.rigs import engines
from vbatch.system import ending, processes
from vbatch.system.ending import Ended


def test_a_pid_recycled_in_the_last_moment_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: no second look after pidfd_open in ``end_all``; the first look happens before the pid changes hands."""
    with engines.orphan() as innocent:
        before = replace(innocent.identity, start_ticks=innocent.identity.start_ticks - 1)
        monkeypatch.setattr(processes, "liveness", lambda _identity: processes.Liveness.ALIVE)
        assert ending.end(before) is Ended.ALREADY_GONE
        assert innocent.alive()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to drop a right")
def test_what_the_kernel_refuses_to_end_stops_nothing_else() -> None:
    """Root without CAP_KILL, as in a container. Mutant: no ``except PermissionError``; the worker died of it."""
    script = (
        "import sys\n"
        "from vbatch.system import ending, processes\n"
        "identities = [processes.identify(int(pid)) for pid in sys.argv[1:]]\n"
        "print(*ending.end_all(identities).values())\n"
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
