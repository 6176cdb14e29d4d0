"""Why an engine did not start or died, in one line, found in what it said."""

from __future__ import annotations

import contextlib
import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """One line for people; whether trying again may help; what a person can do, to paste where possible."""

    line: str
    transient: bool = False
    hint: str | None = None


def of_failed_start(error: BaseException, log: str) -> Cause:
    """Find the root cause of a start that ended with this error and this log."""
    return Cause(line=last_error(log) or f"{type(error).__name__}: {error}")


def of_death(*, exit_codes: Sequence[int | None], log: str, out_of_memory: bool) -> str:
    """Say why an engine died: how its first process ended, and its last words."""
    words = last_error(log)
    ends = [_end(code, out_of_memory=out_of_memory) for code in exit_codes if code]
    return ": ".join(filter(None, [*ends[:1], words])) or "it stopped answering"


def _end(code: int, *, out_of_memory: bool) -> str:
    if code > 0:
        return f"the engine process exited with status {code}"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    if -code == signal.SIGKILL and out_of_memory:
        return "the engine process was killed by SIGKILL (the kernel's out-of-memory killer was at work)"
    return f"the engine process was killed by {name}"


def out_of_memory_kills() -> int:
    """Return how many processes the kernel has killed for want of memory since boot (proc_vmstat(5))."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/vmstat").read_text(encoding="ascii").splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    return 0


# What vLLM's front end says of every death: that it happened.
_ECHOES = ("EngineDeadError",)

_ERROR_LINE = re.compile(
    r"^(?:\(.*?\) )?(?:ERROR \S+ \S+ \[\S+\] )?((?:\w+\.)*\w*(?:Error|Exception)\b.*)$", re.M
)


def last_error(log: str) -> str | None:
    """Return the last line that names an exception."""
    lines = [line for line in _ERROR_LINE.findall(log) if not any(echo in line for echo in _ECHOES)]
    return lines[-1].strip() if lines else None
