"""Run another program for a short time: its input is given, its output goes nowhere, all of it ends at a limit."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress

_LAST = 4096  # bytes of its stderr that are kept
_LOOK = 0.05  # seconds between two looks whether it has ended
_PIPE = 1 << 16  # bytes that a pipe holds


def run(command: Sequence[str], given: bytes, *, seconds: float) -> tuple[int, str]:
    """Run a command without a shell, ``given`` on its stdin; return its exit code and the last line of its stderr.

    It gets a session of its own: a Ctrl-C at the terminal does not reach it. At the limit it is killed with all that
    it started and has not moved elsewhere. What it leaves running when it exits is its own affair. However much it
    prints, little is kept. Raises OSError where it cannot be started, TimeoutError.
    """
    with tempfile.TemporaryFile() as stdin:
        stdin.write(given)
        stdin.seek(0)
        child = subprocess.Popen(
            command,
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            bufsize=0,
            start_new_session=True,
        )
    with child:
        try:
            said = _until_it_ends(child, time.monotonic() + seconds)
        except BaseException:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)  # not reaped yet: the number is still its own
            raise
    lines = said.decode(errors="replace").strip().splitlines()
    return child.returncode, lines[-1] if lines else ""


def _until_it_ends(child: subprocess.Popen[bytes], end: float) -> bytes:
    """Read its stderr until it has exited; return the end of it. A process that it left may keep the pipe open."""
    assert child.stderr is not None
    pipe, said, opened = child.stderr.fileno(), b"", True
    while True:
        ended = child.poll() is not None
        if opened and select.select([pipe], [], [], 0 if ended else _LOOK)[0]:
            more = os.read(pipe, _PIPE)
            said, opened = (said + more)[-_LAST:], bool(more)
        elif not ended and not opened:
            time.sleep(_LOOK)
        if ended:
            return said
        if time.monotonic() > end:
            raise TimeoutError
