"""Whether a GPU has the memory that an engine will take: asked by doctor and, before each load, by the worker.

Both use the same words, because both mean the same: vLLM refuses to start on less than it is told to use.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vbatch import gpu as nvml
from vbatch import holders as gpu_holders
from vbatch import orphans
from vbatch.engine import Blame, EngineStartFailed, build
from vbatch.errors import EngineUnavailable
from vbatch.gpu import Gpu, GpuReport, Trouble, needs
from vbatch.holders import Holder, Kind
from vbatch.orphans import Suspect
from vbatch.store import Store

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """A GPU's free memory against what is wanted of it, in bytes. ``reason`` says who wants it."""

    gpu: Gpu
    needed: int
    reason: str
    holders: tuple[Holder, ...]
    ghost: int

    @property
    def enough(self) -> bool:
        """Whether an engine can start. Where the driver does not tell what is free, vLLM has to find out."""
        return not self.gpu.memory_known or self.gpu.free >= self.needed

    @property
    def words(self) -> str:
        """Say it in one line, in the units of vLLM's own message."""
        total, free = self.gpu.total / GIB, self.gpu.free / GIB
        return (
            f"GPU {self.gpu.index} ({self.gpu.name}) has {free:.2f} of {total:.2f} GiB free; "
            f"{self.needed / GIB:.2f} GiB {'are' if self.enough else 'would be'} needed ({self.reason})"
        )

    @property
    def held_by(self) -> str:
        """Say who holds the rest, in one line."""
        parts = [f"{amount(holder.used)}{holder.who}" for holder in self.holders]
        if self.ghost:
            parts.append(f"{self.ghost / GIB:.1f} GiB by no process that the driver lists")
        return "held by " + "; ".join(parts) if parts else "no process that the driver lists holds any of it"

    @property
    def remedies(self) -> tuple[str, ...]:
        """What can be done about it, to paste: the polite commands that make room, or asking for less."""
        commands = dict.fromkeys(holder.remedies[0] for holder in self._in_the_way)
        share = needs.fitting(self.gpu.free, self.gpu.total)
        if share is not None:
            commands[f"vbatch run-worker -- --gpu-memory-utilization {share}"] = None
        return tuple(commands) or ("nvidia-smi",)

    @property
    def settling(self) -> bool:
        """Whether memory that no process holds any more would be enough: a driver gives it back with a delay."""
        return self.ghost > 0 and self.gpu.free + self.ghost >= self.needed

    @property
    def _in_the_way(self) -> list[Holder]:
        """The fewest holders whose end would make room, the biggest first; none where even all would not."""
        free, found = self.gpu.free, list[Holder]()
        for holder in self.holders:
            if holder.remedies and holder.kind is not Kind.WORKER:
                found.append(holder)
                free += holder.used if holder.used is not None else self.gpu.used
                if free >= self.needed:
                    return found
        return []


def room(gpu: Gpu, suspects: Collection[Suspect] | None, *, needed: int, reason: str) -> Room:
    """Compare, and name who holds memory; ``suspects`` are None where the ledger cannot be read."""
    return Room(
        gpu=gpu,
        needed=needed,
        reason=reason,
        holders=tuple(gpu_holders.holders(gpu, suspects)),
        ghost=gpu_holders.ghost(gpu),
    )


def require_room(store: Store, *, state_dir: Path, gpu: int | None, args: Sequence[str]) -> None:
    """Refuse to load an engine with these flags into too little memory.

    Does nothing where vLLM does not compute on a GPU, or only vLLM knows how much it will take. Raises
    EngineStartFailed: with ``transient`` where memory may still be given back.
    """
    if not build.computes_on_gpu():
        return
    report = nvml.probe()
    if report.trouble is not None:
        raise _no_gpu(report.trouble)
    number = index(gpu, report)
    found = next((card for card in report.gpus if card.index == number), None)
    if found is None:
        lost = next((trouble for at, trouble in report.lost if at == number), None)
        missing = Trouble(code="other" if report.gpus else "no_gpu", message=f"there is no GPU {number}")
        raise _no_gpu(lost or missing)
    utilization = needs.utilization(args)
    if utilization is None:
        return
    needed = needs.required(found.total, utilization)
    suspects = orphans.suspects(store, state_dir) if found.holders else []
    seen = room(found, suspects, needed=needed, reason=f"gpu_memory_utilization {utilization:g}")
    if not seen.enough:
        ours = any(holder.kind is Kind.ORPHAN for holder in seen.holders)
        raise EngineStartFailed(
            f"{seen.words}; {seen.held_by}",
            transient=True,
            blame=Blame.MACHINE,
            hint="vbatch doctor --fix" if ours else "; or ".join(seen.remedies) or "vbatch doctor gpu",
        )


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
def sole_user(state_dir: Path, gpu: int | None) -> Iterator[None]:
    """Keep this GPU to one worker of ours while the context lasts. The kernel frees it however we end.

    Raises EngineUnavailable where another worker has it. Does nothing where vLLM does not compute on a GPU.
    """
    if not build.computes_on_gpu():
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


def amount(size: int | None) -> str:
    """Write an amount of memory in front of its holder."""
    return "" if size is None else f"{size / GIB:.1f} GiB by "


def _no_gpu(trouble: Trouble) -> EngineStartFailed:
    return EngineStartFailed(
        f"the GPU cannot be used: {trouble.message}",
        transient=trouble.passing,
        blame=Blame.MACHINE,
        hint="vbatch doctor gpu",
    )
