"""Which processes are below a process, from /proc alone: an engine's family, to be recorded and to be ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection
from typing import NamedTuple

from vbatch.system import processes
from vbatch.system.processes import Stat, stat_of


class Process(NamedTuple):
    """A process as /proc/PID/stat shows it (proc_pid_stat(5)); with its start a pid is never taken for another."""

    pid: int
    start_ticks: int


def family(roots: Collection[int]) -> list[Process]:
    """Return these processes and all that are below them, as far as they live; the oldest first."""
    stats = _living()
    found = set(roots) & stats.keys()
    while below := {pid for pid in stats.keys() - found if stats[pid].parent in found}:
        found |= below
    members = (Process(pid, stats[pid].start_ticks) for pid in found)
    return sorted(members, key=lambda process: (process.start_ticks, process.pid))


def children(pid: int) -> list[int]:
    """Return the pids of the living processes that are directly below this one."""
    return [child for child, stat in _living().items() if stat.parent == pid]


def alive(known: Collection[Process]) -> list[Process]:
    """Return those that still live; a zombie does not."""
    return [
        process
        for process in known
        if (stat := stat_of(process.pid)) is not None
        and stat.start_ticks == process.start_ticks
        and stat.state not in "ZX"
    ]


def end(known: Collection[Process], *, limit: float) -> list[Process]:
    """Kill what still lives of these and wait, ``limit`` seconds at most. Returns what even SIGKILL left."""
    deadline = time.monotonic() + limit
    while (living := alive(known)) and time.monotonic() < deadline:
        for process in living:
            _kill(process)
        time.sleep(0.05)
    return living


def _living() -> dict[int, Stat]:
    found = ((pid, stat_of(pid)) for pid in processes.pids())
    return {pid: stat for pid, stat in found if stat is not None and stat.state not in "ZX"}


def _kill(process: Process) -> None:
    """Kill this very one: its start is read again behind a handle that no other process can take over."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        handle = os.pidfd_open(process.pid)
        try:
            if alive([process]):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)
