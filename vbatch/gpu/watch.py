"""Watch one GPU while a worker runs: a child process reads NVML every two seconds, so the worker cannot hang in it."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import msgspec

from vbatch.gpu.report import Gpu


@contextmanager
def watched(index: int, seen: Callable[[Gpu], None]) -> Iterator[None]:
    """Call ``seen`` from a thread with each reading of this GPU until the block is left.

    Without a driver there are no readings. However this process ends, the child ends too: its stdin is then closed.
    """
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "vbatch.gpu.nvml", str(index)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    lines = child.stdout

    def read() -> None:
        for line in lines:
            with suppress(msgspec.MsgspecError):
                seen(msgspec.json.decode(line, type=Gpu))

    threading.Thread(target=read, name="gpu-watch", daemon=True).start()
    try:
        yield
    finally:
        with suppress(BrokenPipeError):
            child.stdin.close()
        child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(2)  # one that hangs in the driver is left to the kernel
