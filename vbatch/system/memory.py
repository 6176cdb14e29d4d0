"""The memory of the machine, or of the control group where that allows less."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from vbatch.system import cgroups

_MEMINFO = Path("/proc/meminfo")


def total() -> int:
    """Return how many bytes this process and its group may have at most."""
    limit = cgroups.memory()
    return min(_of_machine("MemTotal"), limit.most if limit is not None else 1 << 62)


def free() -> int:
    """Return how many bytes can be taken without another process losing any: caches of files are free."""
    room = _of_machine("MemAvailable")
    if (limit := cgroups.memory()) is not None:
        for name in ("memory.current", "memory.usage_in_bytes"):
            with suppress(OSError, ValueError):
                room = min(room, max(0, limit.most - int((limit.file.parent / name).read_text())))
    return room


def _of_machine(name: str) -> int:
    """Return a size of /proc/meminfo, in bytes; 0 where it cannot be read."""
    with suppress(OSError, ValueError):
        for line in _MEMINFO.read_text().splitlines():
            key, _, value = line.partition(":")
            if key == name:
                return int(value.split()[0]) << 10
    return 0
