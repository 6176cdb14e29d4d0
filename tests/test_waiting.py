"""The rig that waits: as long as something moves, and not for ever."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from tests.rigs import waiting
from tests.rigs.waiting import cpu_seconds, output, run, until

BURN_IN_A_CHILD = """
import subprocess, sys
burning = "import time; print('burning', flush=True)\\nwhile time.process_time() < 2.5: pass"
subprocess.run([sys.executable, "-c", burning])
"""


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waiting, "LOOK", 0.0)


@pytest.mark.usefixtures("impatient")
def test_a_wait_lasts_as_long_as_there_is_progress() -> None:
    """Three times the silence that it bears. Mutant: a limit from the start."""
    start = time.monotonic()
    assert (
        until(lambda: time.monotonic() - start > 0.9, progress=lambda: int(5 * time.monotonic()), silence=0.3)
        > 0.9
    )


@pytest.mark.usefixtures("impatient")
def test_a_wait_ends_when_nothing_moves() -> None:
    with pytest.raises(TimeoutError, match=r"nothing moved for 0\.1 s \(progress: 7\)"):
        until(lambda: False, progress=lambda: 7, silence=0.1)


def test_the_work_of_children_is_progress() -> None:
    """An engine works below its worker. Mutant: ``cpu_seconds`` of the process alone."""
    with subprocess.Popen(
        [sys.executable, "-c", BURN_IN_A_CHILD], stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        until(lambda: cpu_seconds(parent.pid) >= 1, pause=0.1)
        assert parent.poll() is None
    assert cpu_seconds(parent.pid) == 0, "it is gone"


def test_a_process_that_sleeps_makes_no_progress() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        time.sleep(0.5)
        assert cpu_seconds(process.pid) == 0


def test_a_command_gets_its_input_and_both_of_its_streams_are_read() -> None:
    script = "import sys, time; time.sleep(1.5); print(input()); print('x' * 200_000, file=sys.stderr); sys.exit(3)"
    done = run([sys.executable, "-c", script], text="a line\n")
    assert (done.returncode, done.stdout, len(done.stderr)) == (3, "a line\n", 200_001)


def test_a_command_is_killed_at_its_limit() -> None:
    process = subprocess.Popen(["sleep", "600"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        with pytest.raises(TimeoutError, match=r"within 0\.2 s"):
            output(process, limit=0.2)
        process.kill()
    with pytest.raises(TimeoutError):
        run(["sleep", "600"], limit=0.2)
