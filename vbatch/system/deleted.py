"""Which processes still hold a file that was deleted, from /proc alone: from them it can be brought back."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vbatch.system import processes

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A deleted file as a process holds it."""

    pid: int
    descriptor: Path

    def back(self, path: Path) -> str:
        """Return the command that brings it back."""
        return shlex.join(["cp", str(self.descriptor), str(path)])


def holding(path: Path) -> Iterator[Held]:
    """Yield the processes of this user that hold the file that was deleted at this path."""
    gone = f"{Path(os.path.realpath(path.parent), path.name)} (deleted)"  # proc_pid_fd(5)
    for process in sorted(_PROC.glob("[0-9]*")):
        for descriptor, target in processes.open_files(process):
            if target == gone:
                yield Held(pid=int(process.name), descriptor=descriptor)
                break
