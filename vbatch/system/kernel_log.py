"""What the kernel logged since the boot, where that may be read, and which processes it ended for their memory."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Collection
from contextlib import suppress

RING_BUFFER = "/dev/kmsg"
JOURNAL_LIMIT = 10.0  # seconds; that of a whole boot is read in one

_KILLED = re.compile(r"(Memory cgroup out|Out) of memory: Killed process (\d+)\b")  # mm/oom_kill.c


def read() -> str:
    """Return the kernel log of this boot; empty where it may not be read."""
    return _ring_buffer() or _journal()


def killed_for_memory(pids: Collection[int]) -> dict[int, str]:
    """Return what ran out of memory when the kernel ended these processes: the machine, or a control group.

    The pids are those of the machine's own pid namespace. One that is not among the keys was not ended so, or long ago,
    or the log may not be read.
    """
    if not pids:
        return {}
    kills = ((int(pid), which) for which, pid in _KILLED.findall(read()))
    return {
        pid: "its control group" if which.startswith("Memory") else "the machine"
        for pid, which in kills
        if pid in pids
    }


def _ring_buffer() -> str:
    """Read the kernel's ring buffer without waiting; each read gives one record (kernel docs, ABI dev-kmsg)."""
    records: list[bytes] = []
    with suppress(OSError):
        handle = os.open(RING_BUFFER, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            while True:
                try:
                    records.append(os.read(handle, 8192))
                except BrokenPipeError:  # overwritten meanwhile; the next read continues
                    continue
        except BlockingIOError:
            pass
        finally:
            os.close(handle)
    return b"".join(records).decode(errors="replace")


def _journal() -> str:
    """Ask the journal, which members of adm and systemd-journal may read where only root may read the ring buffer."""
    with suppress(OSError, subprocess.SubprocessError):
        command = ["journalctl", "--dmesg", "--boot", "--output=cat", "--no-pager", "--quiet"]
        return subprocess.run(
            command, capture_output=True, text=True, errors="replace", timeout=JOURNAL_LIMIT, check=True
        ).stdout
    return ""
