"""Whether a GPU has the memory that an engine will take: asked by doctor and, before each load, by the worker.

Both use the same words, because both mean the same: vLLM refuses to start on less than it is told to use.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from vbatch import gpu as nvml
from vbatch import holders as gpu_holders
from vbatch import orphans
from vbatch.engine import Blame, EngineStartFailed, build
from vbatch.errors import EngineUnavailable
from vbatch.gpu import Gpu, Trouble, needs
from vbatch.holders import Holder, Kind
from vbatch.store import Store

GIB = 1 << 30

# Troubles that pass by themselves while a machine boots; the others need a person.
_PASSING = frozenset({"driver_not_loaded", "hanging", "crashed"})


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
            f"GPU {self.gpu.index} ({self.gpu.name}) has {free:.1f} of {total:.2f} GiB free; "
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
        """What can be done about it, to paste: the polite command of each holder, or asking for less."""
        commands = dict.fromkeys(command for holder in self.holders for command in holder.remedies[:1])
        share = needs.fitting(self.gpu.free, self.gpu.total)
        if share is not None:
            commands[f"vbatch run-worker -- --gpu-memory-utilization {share}"] = None
        return tuple(commands)


def room(gpu: Gpu, store: Store | None, *, needed: int, reason: str) -> Room:
    """Compare, and name who holds memory. Without a store nobody can be proved to be ours."""
    suspects = orphans.suspects(store) if store is not None and gpu.holders else []
    return Room(
        gpu=gpu,
        needed=needed,
        reason=reason,
        holders=tuple(gpu_holders.holders(gpu, suspects)),
        ghost=gpu_holders.ghost(gpu),
    )


def require_room(store: Store, *, gpu: int | None, args: Sequence[str]) -> None:
    """Refuse to load an engine with these flags into too little memory.

    Does nothing where vLLM does not compute on a GPU. Raises EngineStartFailed: with ``transient`` where memory may
    still be given back.
    """
    if not build.computes_on_gpu():
        return
    number = index(gpu)
    report = nvml.probe()
    if report.trouble is not None:
        raise _no_gpu(report.trouble)
    found = next((card for card in report.gpus if card.index == number), None)
    if found is None:
        lost = next((trouble for at, trouble in report.lost if at == number), None)
        raise _no_gpu(lost or Trouble(code="other", message=f"there is no GPU {number}"))
    utilization = needs.utilization(args)
    needed = needs.required(found.total, utilization)
    seen = room(found, store, needed=needed, reason=f"gpu_memory_utilization {utilization:g}")
    if not seen.enough:
        ours = any(holder.kind is Kind.ORPHAN for holder in seen.holders)
        raise EngineStartFailed(
            f"{seen.words}; {seen.held_by}",
            transient=True,
            blame=Blame.MACHINE,
            hint="vbatch doctor --fix" if ours else "; or ".join(seen.remedies) or "vbatch doctor gpu",
        )


def index(gpu: int | None) -> int:
    """Return the number, as NVML counts, of the GPU that a worker uses when told this."""
    if gpu is not None:
        return gpu
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").partition(",")[0].strip()
    return int(visible) if visible.isdecimal() else 0


@contextmanager
def sole_user(state_dir: Path, gpu: int | None) -> Iterator[None]:
    """Keep this GPU to one worker of ours while the context lasts. The kernel frees it however we end.

    Raises EngineUnavailable where another worker has it. Does nothing where vLLM does not compute on a GPU.
    """
    if not build.computes_on_gpu():
        yield
        return
    state_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
    path = state_dir / f"gpu-{index(gpu)}.lock"
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = os.pread(handle, 20, 0).decode(errors="replace").strip()
            raise EngineUnavailable(
                f"GPU {index(gpu)} already has a worker (process {pid or 'unknown'})",
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
        transient=trouble.code in _PASSING,
        blame=Blame.MACHINE,
        hint="vbatch doctor gpu",
    )
