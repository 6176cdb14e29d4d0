"""An engine process ends with its worker, and no signal of the worker's group reaches it."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.rigs.waiting import until
from vbatch.engine import guard
from vbatch.system import descendants


@contextmanager
def family(*words: str) -> Iterator[tuple[subprocess.Popen[str], list[descendants.Process], list[bool]]]:
    """Start a worker with two generations below it: its process, theirs, and who leads a group of its own."""
    command = [sys.executable, "-m", "tests.rigs.guarded", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        pairs = [tuple(map(int, word.split(":"))) for word in worker.stdout.readline().split()]
        below = [
            process
            for process in descendants.family([pair[0] for pair in pairs])
            if process.pid != worker.pid
        ]
        try:
            yield worker, below, [pid == group for pid, group in pairs]
        finally:
            worker.kill()
            descendants.end(below, limit=10)


def test_everything_below_a_killed_worker_ends() -> None:
    """Also a process that ignores SIGTERM, and one whose parent is an engine. Mutant: ``arm`` does nothing."""
    with family() as (worker, below, leads):
        assert leads == [False, True, True]
        worker.kill()
        worker.wait()
        until(lambda: not descendants.alive(below))


def test_a_process_that_is_armed_after_its_workers_death_ends() -> None:
    with family("late") as (worker, below, _):
        worker.kill()
        worker.wait()
        until(lambda: not descendants.alive(below))


def test_nothing_is_guarded_that_no_worker_started() -> None:
    """A user's own ``vllm serve`` in the same environment stays as it is."""
    with family("unguarded") as (worker, below, leads):
        assert leads == [False, False, False]
        worker.kill()
        worker.wait()
        with pytest.raises(TimeoutError):
            until(lambda: not descendants.alive(below), silence=guard.CHECK_INTERVAL + guard.GRACE + 1)


def test_the_guard_imports_the_standard_library_only() -> None:
    script = (
        "import sys; before = set(sys.modules); import vbatch.engine.guard; print(*set(sys.modules) - before)"
    )

    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)

    foreign = (
        {name.partition(".")[0] for name in done.stdout.split()}
        - sys.stdlib_module_names
        - {"vbatch", "__mp_main__"}
    )
    assert foreign == set()
