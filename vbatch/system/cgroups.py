"""The limits of the control groups of this process, of version 2 and of version 1 (cgroups(7)).

Version 1 has a tree for each controller, and names its files by bytes; a machine may have both.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_NO_LIMIT = 1 << 62  # version 1 writes the largest number of pages for "no limit"


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupLimit:
    """A limit of one group: the name of the group, the file that has it, and its value."""

    group: str
    file: Path
    most: int


def memory() -> GroupLimit | None:
    """Return the innermost limit of memory, in bytes; None where there is none, or it cannot be read."""
    for folder, name in (("", "memory.max"), ("memory", "memory.limit_in_bytes")):
        for group in _groups(folder):
            if (most := _number(group / name)) is not None and most < _NO_LIMIT:
                return GroupLimit(group=group.name, file=group / name, most=most)
    return None


def processes_used_up() -> GroupLimit | None:
    """Return the limit of processes and threads that is reached; several may hold, and another one may have room."""
    for folder in ("", "pids"):
        for group in _groups(folder):
            most, now = _number(group / "pids.max"), _number(group / "pids.current")
            if most is not None and now is not None and now >= most - 1:
                return GroupLimit(group=group.name, file=group / "pids.max", most=most)
    return None


def _groups(controller: str) -> Iterator[Path]:
    """Yield the groups of this process in the tree of a controller ("": version 2), the innermost first.

    In a container the tree may begin at the container's own group, while the path is that on the machine.
    """
    path = _path(controller)
    if path is None:
        return
    top = _CGROUPS / controller
    folder = top / path.lstrip("/")
    while folder != top.parent and folder.is_relative_to(top):
        yield folder
        folder = folder.parent


def _path(controller: str) -> str | None:
    try:
        lines = (_PROC / str(os.getpid()) / "cgroup").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if controller in controllers.split(",") if controller else number == "0":
            return path
    return None


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):  # "max", or none at all
        return None
