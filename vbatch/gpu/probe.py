"""Ask the driver in a child process with a time limit: a wedged driver hangs, a broken library crashes.

The child may then wait inside the kernel, where even SIGKILL does not end it; it is left there and not waited for.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta

import msgspec

from vbatch.gpu.report import Gpu, GpuReport, Trouble
from vbatch.text import MIB

LIMIT = timedelta(seconds=10)  # NVML's own start takes 2 to 3 s without persistence mode
SETTLED = 64 * MIB  # bytes; two readings that differ by less count as equal
PAUSE = 0.5


def probe(limit: timedelta = LIMIT) -> GpuReport:
    """Return what the driver reports; one that hangs or crashes is ``trouble`` in the report, not an exception."""
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "vbatch.gpu.nvml"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        said, complaint = child.communicate(timeout=limit.total_seconds())
    except subprocess.TimeoutExpired:
        child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(1)
        message = f"the driver gave no answer within {limit.total_seconds():g} s"
        return GpuReport(trouble=Trouble(code="hanging", message=message))
    if child.returncode != 0:
        return GpuReport(trouble=Trouble(code="crashed", message=_crash(child.returncode, complaint)))
    return msgspec.json.decode(said, type=GpuReport)


def wait_until_settled(index: int, *, limit: timedelta, look: Callable[[], GpuReport] = probe) -> Gpu | None:
    """Wait until this GPU's free memory no longer changes; return the GPU as it is then, None if it does not answer.

    A driver frees memory some time after its process is gone.
    """
    deadline = time.monotonic() + limit.total_seconds()
    before: Gpu | None = None
    while True:
        now = next((card for card in look().gpus if card.index == index), None)
        settled = now is not None and before is not None and abs(now.free - before.free) < SETTLED
        if now is None or settled or time.monotonic() > deadline:
            return now
        before = now
        time.sleep(PAUSE)


@contextmanager
def watched(indices: Sequence[int], seen: Callable[[tuple[Gpu, ...]], None]) -> Iterator[None]:
    """Call ``seen`` from a thread with each reading of these GPUs until the block is left.

    Without a driver there are no readings. However this process ends, the child ends too: its stdin is then closed.
    """
    child = subprocess.Popen(
        [sys.executable, "-P", "-m", "vbatch.gpu.nvml", *map(str, indices)],
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
                if cards := msgspec.json.decode(line, type=tuple[Gpu, ...]):
                    seen(cards)

    threading.Thread(target=read, name="gpu-watch", daemon=True).start()
    try:
        yield
    finally:
        with suppress(BrokenPipeError):
            child.stdin.close()
        child.kill()
        with suppress(subprocess.TimeoutExpired):
            child.wait(2)  # one that hangs in the driver is left to the kernel


def _crash(returncode: int, complaint: bytes) -> str:
    if returncode < 0:
        return f"the driver's library crashed ({signal.Signals(-returncode).name})"
    last = complaint.decode(errors="replace").strip().splitlines()
    return f"the driver's library could not be asked: {last[-1] if last else f'exit {returncode}'}"
