"""Check whether a GPU has the memory that an engine will need: used by doctor and, before each load, by the worker.

Both print the same text, because both check the same: vLLM refuses to start if less is free than it is set to use.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from vbatch import gpu as nvml
from vbatch.engine import Blame, EngineStartFailed, installed
from vbatch.gpu import Gpu, GpuReport, Trouble
from vbatch.gpu_memory import holders as gpu_holders
from vbatch.gpu_memory import needs
from vbatch.gpu_memory.holders import Holder, Kind
from vbatch.recovery import orphans
from vbatch.recovery.orphans import Suspect
from vbatch.store import Store
from vbatch.text import GIB, size


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryCheck:
    """A GPU's free memory compared with what an engine needs, in bytes.

    ``reason`` names the setting that asks for ``needed``. ``unlisted`` is in use, but no process that the
    driver lists holds it.
    """

    gpu: Gpu
    needed: int
    reason: str
    holders: tuple[Holder, ...]
    unlisted: int

    @property
    def enough(self) -> bool:
        """Whether an engine can start. If the driver does not report what is free, only vLLM can find out."""
        return not self.gpu.memory_known or self.gpu.free >= self.needed

    @property
    def summary(self) -> str:
        """The comparison in one line, in the units of vLLM's own message."""
        total, free = self.gpu.total / GIB, self.gpu.free / GIB
        return (
            f"GPU {self.gpu.index} ({self.gpu.name}) has {free:.2f} of {total:.2f} GiB free; "
            f"{self.needed / GIB:.2f} GiB {'are' if self.enough else 'would be'} needed ({self.reason})"
        )

    @property
    def held_by(self) -> str:
        """Who holds the rest, in one line."""
        parts = [holder.summary for holder in self.holders]
        if self.unlisted:
            parts.append(f"{size(self.unlisted)} by no process that the driver lists")
        return "held by " + "; ".join(parts) if parts else "no process that the driver lists holds any of it"

    @property
    def remedies(self) -> tuple[str, ...]:
        """Commands to paste: those that free enough memory politely, or one that has vLLM use less."""
        commands = dict.fromkeys(holder.remedies[0] for holder in self._to_stop)
        share = needs.fitting(self.gpu.free, self.gpu.total)
        if share is not None:
            commands[f"vbatch run-worker -- --gpu-memory-utilization {share}"] = None
        return tuple(commands) or ("nvidia-smi",)

    @property
    def settling(self) -> bool:
        """Whether it may become enough by itself: a driver frees the memory of an ended process with a delay."""
        return self.unlisted > 0 and self.gpu.free + self.unlisted >= self.needed

    @property
    def _to_stop(self) -> list[Holder]:
        """The biggest holders, as many as must end so that enough is free; none if even all are not enough."""
        free, found = self.gpu.free, list[Holder]()
        for holder in self.holders:
            if holder.remedies and holder.kind is not Kind.WORKER:
                found.append(holder)
                free += holder.used if holder.used is not None else self.gpu.used
                if free >= self.needed:
                    return found
        return []


def compare(gpu: Gpu, suspects: Collection[Suspect] | None, *, needed: int, reason: str) -> MemoryCheck:
    """Compare, and name who holds memory. ``suspects`` come from the ledger, None if it cannot be read."""
    return MemoryCheck(
        gpu=gpu,
        needed=needed,
        reason=reason,
        holders=tuple(gpu_holders.holders(gpu, suspects)),
        unlisted=gpu_holders.unlisted(gpu),
    )


def require(store: Store, *, state_dir: Path, numbers: Sequence[int], args: Sequence[str]) -> None:
    """Raise EngineStartFailed if one of these GPUs has too little free memory for an engine with these flags.

    It is ``transient`` if memory may still be freed. Does nothing if vLLM does not compute on a GPU that reports to
    NVML, or if only vLLM knows how much it will need.
    """
    if not installed.has_nvml():
        return
    report = nvml.probe()
    if report.trouble is not None:
        raise _no_gpu(report.trouble)
    checks = []
    suspects: Collection[Suspect] | None = None
    for card in [_card(number, report) for number in dict.fromkeys(numbers)]:
        wanted = needs.at_start(card.total, args)
        if wanted is None:
            return
        if card.holders and suspects is None:
            suspects = orphans.suspects(store, state_dir)
        checks.append(compare(card, suspects or [], needed=wanted[0], reason=wanted[1]))
    if short := [seen for seen in checks if not seen.enough]:
        has_orphan = any(holder.kind is Kind.ORPHAN for seen in short for holder in seen.holders)
        remedies = dict.fromkeys(remedy for seen in short for remedy in seen.remedies)
        raise EngineStartFailed(
            "; ".join(f"{seen.summary}; {seen.held_by}" for seen in short),
            transient=True,
            blame=Blame.MACHINE,
            hint="vbatch doctor --fix" if has_orphan else "; or ".join(remedies) or "vbatch doctor gpu",
        )


def _card(number: int, report: GpuReport) -> Gpu:
    found = next((card for card in report.gpus if card.index == number), None)
    if found is None:
        lost = next((trouble for at, trouble in report.lost if at == number), None)
        missing = Trouble(code="other" if report.gpus else "no_gpu", message=f"there is no GPU {number}")
        raise _no_gpu(lost or missing)
    return found


def _no_gpu(trouble: Trouble) -> EngineStartFailed:
    return EngineStartFailed(
        f"the GPU cannot be used: {trouble.message}",
        transient=trouble.passing,
        blame=Blame.MACHINE,
        hint="vbatch doctor gpu",
    )
