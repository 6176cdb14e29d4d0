"""Wait for what another process does: as long as it makes progress, however slow or busy the machine is.

A fixed time fails a test on a slow machine, and no limit keeps a test of something that hangs for ever. So a wait
follows a value that changes while there is progress, and gives up after a long silence. What never ends and never
falls silent is ended by pytest's own limit.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import psutil

SILENCE = 120.0  # seconds without progress after which a wait gives up
LOOK = 1.0  # seconds from one look at the progress to the next: it may cost more than the condition


def until(
    happened: Callable[[], object],
    *,
    progress: Callable[[], object] = lambda: None,
    silence: float = SILENCE,
    pause: float = 0.05,
) -> float:
    """Wait until this is so and return how many seconds that took.

    Raises TimeoutError ``silence`` seconds after the last change of ``progress``, or after the start without one.
    """
    start = changed = looked = time.monotonic()
    seen: object = None  # no look at the start: most waits are over before the first one
    while not happened():
        if (now := time.monotonic()) - looked >= LOOK:
            looked = now
            if (found := progress()) != seen:
                seen, changed = found, now
            elif now - changed > silence:
                raise TimeoutError(
                    f"it did not happen, and nothing moved for {silence:g} s (progress: {seen})"
                )
        time.sleep(pause)
    return time.monotonic() - start


def cpu_seconds(*pids: int | None) -> int:
    """Return the whole seconds of CPU time that these processes and all below them have consumed.

    Whole ones, for a process that only says that it lives consumes milliseconds.
    """
    total = 0.0
    for pid in pids:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            for one in (process, *process.children(recursive=True)):
                with contextlib.suppress(psutil.Error):
                    times = one.cpu_times()
                    total += times.user + times.system
    return int(total)


def exit_code(process: subprocess.Popen[bytes]) -> int:
    """Return how a process ended that is about to end, as long as it consumes CPU time. Raises TimeoutError."""
    until(lambda: process.poll() is not None, progress=lambda: cpu_seconds(process.pid))
    return process.returncode


def output(
    process: subprocess.Popen[str],
    text: str | None = None,
    *,
    limit: float | None = None,
    progress: Callable[[], object] = lambda: None,
) -> tuple[str, str]:
    """Write ``text`` to a process and return its stdout and stderr when it has ended.

    Raises TimeoutError: after ``limit`` seconds, without one when it consumes no CPU time and ``progress``, of what
    it waits for, stands still.
    """
    written = [text]
    printed: list[tuple[str, str]] = []

    def ended() -> bool:
        with contextlib.suppress(subprocess.TimeoutExpired):
            printed.append(process.communicate(written.pop() if written else None, timeout=limit or LOOK))
        if limit is not None and not printed:
            raise TimeoutError(f"it did not end within {limit:g} s")
        return bool(printed)

    until(ended, progress=lambda: (cpu_seconds(process.pid), progress()), pause=0)
    return printed[0]


def run(
    command: Sequence[str | Path],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    text: str | None = None,
    limit: float | None = None,
    progress: Callable[[], object] = lambda: None,
) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, with ``text`` as its input; it is killed where ``output`` raises TimeoutError."""
    stdin = subprocess.DEVNULL if text is None else subprocess.PIPE
    with subprocess.Popen(
        command, env=env, cwd=cwd, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            out, err = output(process, text, limit=limit, progress=progress)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
