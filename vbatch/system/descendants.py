"""Which processes are below a process, from /proc alone: an engine's family, to be recorded and to be ended."""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple


class Process(NamedTuple):
    """A process as /proc/PID/stat shows it (proc_pid_stat(5)); with its start a pid is never taken for another."""

    pid: int
    start_ticks: int


def family(pids: Collection[int]) -> list[Process]:
    """Return these processes and all that are below them, as far as they live; the oldest first."""
    stats = {stat.pid: stat for stat in _all() if stat.state not in "ZX"}
    found = {pid: Process(pid, stats[pid].start_ticks) for pid in pids if pid in stats}
    while below := [stat for stat in stats.values() if stat.parent in found and stat.pid not in found]:
        found |= {stat.pid: Process(stat.pid, stat.start_ticks) for stat in below}
    return sorted(found.values(), key=lambda process: (process.start_ticks, process.pid))


def alive(processes: Collection[Process]) -> list[Process]:
    """Return those that still live; a zombie does not."""
    return [
        process
        for process in processes
        if (stat := _read(process.pid)) is not None
        and stat.start_ticks == process.start_ticks
        and stat.state not in "ZX"
    ]


def end(processes: Collection[Process], *, limit: float) -> list[Process]:
    """Kill what still lives of these and wait, ``limit`` seconds at most. Returns what even SIGKILL left."""
    deadline = time.monotonic() + limit
    while (living := alive(processes)) and time.monotonic() < deadline:
        for process in living:
            _kill(process)
        time.sleep(0.05)
    return living


def _kill(process: Process) -> None:
    """Kill this very one: its start is read again behind a handle that no other process can take over."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        handle = os.pidfd_open(process.pid)
        try:
            if alive([process]):
                signal.pidfd_send_signal(handle, signal.SIGKILL)
        finally:
            os.close(handle)


class _Stat(NamedTuple):
    pid: int
    parent: int
    state: str
    start_ticks: int


def _all() -> Iterator[_Stat]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and (stat := _read(int(entry.name))) is not None:
            yield stat


def _read(pid: int) -> _Stat | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:  # gone, or hidden (hidepid=1)
        return None
    fields = text.rpartition(")")[2].split()  # the command's name, in brackets, may hold anything
    return _Stat(pid=pid, state=fields[0], parent=int(fields[1]), start_ticks=int(fields[19]))
