"""Which GPU a worker uses, and the lock that keeps it to one worker. The kernel releases it, however a worker ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from vbatch import gpu as nvml
from vbatch.engine import installed
from vbatch.errors import EngineUnavailable
from vbatch.gpu import GpuReport


def index(gpu: int | None, report: GpuReport | None = None) -> int:
    """Return the number, as NVML counts, of the GPU that a worker uses when told this.

    CUDA_VISIBLE_DEVICES may also name it by the beginning of its UUID; then the driver is asked, or its ``report``.
    """
    if gpu is not None:
        return gpu
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    if visible.startswith("GPU-"):
        cards = (report or nvml.probe()).gpus
        return next((card.index for card in cards if card.uuid.startswith(visible)), 0)
    return int(visible) if visible.isdecimal() else 0


def occupant(state_dir: Path, number: int) -> int | None:
    """Return the pid of the worker that last took this GPU for itself, which may be gone; None where none did."""
    try:
        return int(_lock_of(state_dir, number).read_text())
    except (OSError, ValueError):
        return None


def _lock_of(state_dir: Path, number: int) -> Path:
    return state_dir / f"gpu-{number}.lock"


@contextmanager
def hold(state_dir: Path, gpu: int | None) -> Iterator[None]:
    """Keep this GPU to one worker of ours while the context lasts. The kernel frees it however we end.

    Raises EngineUnavailable where another worker has it. Does nothing where vLLM does not compute on a GPU.
    """
    if not installed.computes_on_gpu():
        yield
        return
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    number = index(gpu)
    handle = os.open(_lock_of(state_dir, number), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(handle, 20, 0).decode(errors="replace").strip()
            raise EngineUnavailable(
                f"GPU {number} already has a worker (process {pid or 'unknown'})",
                hint="one worker keeps a GPU busy; another GPU: vbatch run-worker --gpu N",
            ) from None
        os.truncate(handle, 0)
        os.pwrite(handle, str(os.getpid()).encode(), 0)
        yield
    finally:
        os.close(handle)
