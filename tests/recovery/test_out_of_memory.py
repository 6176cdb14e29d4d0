"""A worker that the kernel ended for its memory, for real: the next worker and doctor name that."""

from __future__ import annotations

import logging
import signal

import pytest

from tests.rigs.filling import claim, take_in, worker
from tests.rigs.memory_group import memory_group, start_in
from vbatch import recovery
from vbatch.cli.events import SentenceFormatter
from vbatch.recovery import dead_workers
from vbatch.store import Store
from vbatch.system import kernel_log, processes

_TAKES_MORE = "input(); held = [bytearray(8 << 20) for _ in range(64)]"


def test_the_kernels_end_of_a_worker_is_named(store: Store, caplog: pytest.LogCaptureFixture) -> None:
    """Beside one that ended otherwise, of which nothing is said.

    Mutants: killed_for_memory that names every dead worker; recover that does not ask the kernel's log.
    """
    if not processes.among_all() or not kernel_log.read():
        pytest.skip("the kernel log cannot be read, or has other pids")
    take_in(store, 2, body=b"{}")
    with memory_group(64 << 20) as group:
        victim, other = (start_in(group, code) for code in (_TAKES_MORE, "input()"))
        ids = []
        for process in (victim, other):
            identity = processes.identify(process.pid)
            assert identity is not None
            ids.append(worker(store, identity=identity))
        claim(store, ids[0])
        other.kill()
        other.wait()
        victim.communicate("begin\n")
        assert victim.returncode == -signal.SIGKILL
    assert recovery.killed_for_memory(recovery.dead(store)) == {ids[0]: "its control group"}
    with caplog.at_level(logging.INFO):
        assert dead_workers.release_chunks(store) == 1
    said = [SentenceFormatter().format(record) for record in caplog.records if "killed" in str(record.msg)]
    assert len(said) == 1
    assert said[0].endswith(f"the kernel ended the worker {ids[0]}: its control group ran out of memory")


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("Out of memory: Killed process 17 (python3) total-vm:1kB", {17: "the machine"}),
        ("Memory cgroup out of memory: Killed process 17 (VLLM::EngineCor) total", {17: "its control group"}),
        ("Out of memory: Killed process 171 (python3) total-vm:1kB", {}),
        ("oom_reaper: reaped process 17 (python3), now anon-rss:0kB", {}),
    ],
)
def test_lines_of_the_kernel(line: str, found: dict[int, str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a pid that only begins like it."""
    monkeypatch.setattr(kernel_log, "read", lambda: f"6,1,2,-;{line}\n")
    assert kernel_log.killed_for_memory([17]) == found
