"""The family of a process, and its end."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.waiting import until
from vbatch.system import descendants


@pytest.fixture
def shell() -> Iterator[subprocess.Popen[bytes]]:
    """A shell with a child and a grandchild."""
    with subprocess.Popen(["/bin/sh", "-c", "(sleep 600; :) & sleep 600; :"]) as process:
        until(lambda: len(descendants.family([process.pid])) == 4)
        yield process
        descendants.end(descendants.family([process.pid]), limit=5)


def test_a_family_is_all_that_lives_below(shell: subprocess.Popen[bytes]) -> None:
    family = descendants.family([shell.pid])

    assert family[0].pid == shell.pid
    assert descendants.alive(family) == family
    assert descendants.family([]) == []


def test_processes_that_may_not_be_looked_at_are_none_of_it(
    shell: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where /proc hides those of others (hidepid=1). Mutant: expecting them to be gone, or to be readable."""
    read = Path.read_bytes

    def hidden(path: Path) -> bytes:
        if path == Path("/proc/1/stat"):
            raise PermissionError
        return read(path)

    monkeypatch.setattr(Path, "read_bytes", hidden)
    assert len(descendants.family([shell.pid])) == 4


def test_the_end_of_a_family(shell: subprocess.Popen[bytes]) -> None:
    family = descendants.family([shell.pid])

    assert descendants.end(family, limit=5) == []
    assert descendants.alive(family) == []


def test_a_recycled_pid_is_another_process(shell: subprocess.Popen[bytes]) -> None:
    """Mutant: comparing pids alone kills a stranger."""
    impostor = descendants.Process(shell.pid, start_ticks=1)

    assert descendants.end([impostor], limit=1) == []
    assert shell.poll() is None


def test_a_pid_recycled_in_the_last_moment_is_another_process(
    shell: subprocess.Popen[bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It changes hands after the look. Mutant: ``os.kill`` without a second look behind a pidfd."""
    impostor = descendants.Process(shell.pid, start_ticks=1)
    looks = iter([[impostor]])
    look = descendants.alive
    monkeypatch.setattr(descendants, "alive", lambda asked: next(looks, None) or look(asked))

    assert descendants.end([impostor], limit=1) == []
    assert shell.poll() is None
