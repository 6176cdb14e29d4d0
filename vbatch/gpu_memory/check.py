"""Whether a GPU has the memory that an engine will take: asked by doctor and, before each load, by the worker.

Both use the same words, because both mean the same: vLLM refuses to start on less than it is told to use.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from vbatch import gpu as nvml
from vbatch.engine import Blame, EngineStartFailed, installed
from vbatch.gpu import Gpu, Trouble, needs
from vbatch.gpu_memory import holders as gpu_holders
from vbatch.gpu_memory import locks
from vbatch.gpu_memory.holders import Holder, Kind
from vbatch.recovery import orphans
from vbatch.recovery.orphans import Suspect
from vbatch.store import Store

GIB = 1 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCheck:
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


def compare(gpu: Gpu, suspects: Collection[Suspect] | None, *, needed: int, reason: str) -> MemoryCheck:
    """Compare, and name who holds memory; ``suspects`` are None where the ledger cannot be read."""
    return MemoryCheck(
        gpu=gpu,
        needed=needed,
        reason=reason,
        holders=tuple(gpu_holders.holders(gpu, suspects)),
        ghost=gpu_holders.ghost(gpu),
    )


def require(store: Store, *, state_dir: Path, gpu: int | None, args: Sequence[str]) -> None:
    """Refuse to load an engine with these flags into too little memory.

    Does nothing where vLLM does not compute on a GPU, or only vLLM knows how much it will take. Raises
    EngineStartFailed: with ``transient`` where memory may still be given back.
    """
    if not installed.computes_on_gpu():
        return
    report = nvml.probe()
    if report.trouble is not None:
        raise _no_gpu(report.trouble)
    number = locks.index(gpu, report)
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
    seen = compare(found, suspects, needed=needed, reason=f"gpu_memory_utilization {utilization:g}")
    if not seen.enough:
        ours = any(holder.kind is Kind.ORPHAN for holder in seen.holders)
        raise EngineStartFailed(
            f"{seen.words}; {seen.held_by}",
            transient=True,
            blame=Blame.MACHINE,
            hint="vbatch doctor --fix" if ours else "; or ".join(seen.remedies) or "vbatch doctor gpu",
        )


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
