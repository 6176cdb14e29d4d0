"""Which GPU a worker uses, and the lock that keeps other workers off it. The kernel frees a dead worker's lock."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from vbatch import gpu as nvml
from vbatch.engine import installed
from vbatch.errors import EngineUnavailable
from vbatch.gpu import GpuReport
from vbatch.system import files


def index(gpu: int | None, report: GpuReport | None = None) -> int:
    """Return the number, as NVML counts, of the GPU that a worker with this setting uses.

    Without a setting CUDA_VISIBLE_DEVICES decides. It may name the GPU by the beginning of its UUID; the number then
    comes from ``report``, or from the driver.
    """
    if gpu is not None:
        return gpu
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    if visible.startswith("GPU-"):
        cards = (report or nvml.probe()).gpus
        return next((card.index for card in cards if card.uuid.startswith(visible)), 0)
    return int(visible) if visible.isdecimal() else 0


def last_worker_pid(state_dir: Path, number: int) -> int | None:
    """Return the pid of the last worker that locked this GPU; it may have ended. None if no worker ever did."""
    try:
        return int(_lock_of(state_dir, number).read_text())
    except (OSError, ValueError):
        return None


def _lock_of(state_dir: Path, number: int) -> Path:
    return state_dir / f"gpu-{number}.lock"


@contextmanager
def hold(state_dir: Path, gpu: int | None) -> Iterator[None]:
    """Lock this GPU inside the block, so that no second vbatch worker uses it.

    Raises EngineUnavailable if another worker has it. Does nothing if vLLM does not compute on a GPU.
    """
    if not installed.computes_on_gpu():
        yield
        return
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    number = index(gpu)
    with ExitStack() as stack:
        try:
            handle = stack.enter_context(files.locked(_lock_of(state_dir, number), wait=False))
        except BlockingIOError:
            raise EngineUnavailable(
                f"GPU {number} already has a worker (process {last_worker_pid(state_dir, number) or 'unknown'})",
                hint="one worker is enough for a GPU; to use another GPU: vbatch run-worker --gpu N",
            ) from None
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
