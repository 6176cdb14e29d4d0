"""Stand-ins for engine processes and workers: real processes that sleep, reparented as a real orphan is.

For tests of who may be ended. The real vLLM engine has its own test of this (tests/doctor/test_real_orphan.py).
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tests.rigs.waiting import until
from vbatch.recovery import evidence
from vbatch.store import Store, registry
from vbatch.store.records import EngineProcess
from vbatch.system import processes
from vbatch.system.processes import ProcessIdentity

TOKEN = "0123456789abcdef"
TITLE = f"vbatch-{TOKEN}::EngineCore"  # as tests/engine/test_vllm.py finds the real one
FOREIGN_TITLE = "VLLM::EngineCore"

_SLEEPER = """
import signal, sys, time
if "stubborn" in sys.argv: signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("ready", flush=True)
time.sleep(600)
"""

# A parent that starts the sleeper in a session of its own, prints its pid, and ends: an orphan, as after a SIGKILL.
_PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.argv[1], *sys.argv[2:]], stdout=subprocess.PIPE, start_new_session=True)
child.stdout.readline()
print(child.pid, flush=True)
"""


@dataclass(frozen=True)
class Process:
    """A real process of a test, with its identity."""

    pid: int
    identity: ProcessIdentity

    def alive(self) -> bool:
        return processes.identify(self.pid) == self.identity


def of(pid: int) -> Process:
    """Return the process that has this pid now."""
    identity = processes.identify(pid)
    assert identity is not None
    return Process(pid, identity)


@contextlib.contextmanager
def orphan(*how: str, title: str = TITLE) -> Iterator[Process]:
    """Keep a process whose parent has ended; its title is that of vLLM's engine."""
    done = subprocess.run(
        [sys.executable, "-c", _PARENT, *command(*how, title=title)],
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    process = of(int(done.stdout))
    try:
        yield process
    finally:
        end(process)


def command(*how: str, title: str = TITLE) -> list[str]:
    """Return the command of a process that sleeps under this title."""
    return ["bash", "-c", 'exec -a "$0" "$@"', title, sys.executable, "-c", _SLEEPER, *how]


@contextlib.contextmanager
def child(*words: str) -> Iterator[Process]:
    """Keep a child of the test."""
    popen = subprocess.Popen(words or ["sleep", "600"])
    try:
        time.sleep(0.05)
        yield of(popen.pid)
    finally:
        popen.kill()
        popen.wait()


def dead_identity() -> ProcessIdentity:
    """Return the identity of a process that has ended."""
    with child() as process:
        pass
    return process.identity


def end(process: Process) -> None:
    """End a process of a test for good."""
    if process.alive():
        with contextlib.suppress(ProcessLookupError):
            os.kill(process.pid, signal.SIGKILL)
    until(lambda: not process.alive(), pause=0.01)


def in_ledger(
    store: Store,
    process: ProcessIdentity,
    *,
    worker: ProcessIdentity,
    state_dir: Path | None,
    loaded_by: ProcessIdentity | None = None,
) -> EngineProcess:
    """Write an engine process of that worker into the ledger and, where one is given, into its state folder.

    ``loaded_by`` is the worker by the state folder, where the two do not agree.
    """
    if state_dir is not None:
        evidence.withdraw(state_dir, TOKEN)
        evidence.write(state_dir, TOKEN, worker=loaded_by or worker)
    name = registry.register(store, identity=worker, engine="vllm", gpu_uuid=None)
    entry = EngineProcess(worker=name, identity=process, title=TITLE, cgroup=None)
    registry.record_processes(store, worker=name, processes=[entry])
    return entry
