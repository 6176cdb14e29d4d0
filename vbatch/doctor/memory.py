"""Checks of GPU memory: who holds it, our own orphans first, and whether what is free is enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import timedelta

from vbatch import gpu as nvml
from vbatch import holders as gpu_holders
from vbatch import orphans, preflight, processes
from vbatch.doctor.catalogue import Meaning
from vbatch.doctor.checks import Check, Group, need_in_words
from vbatch.doctor.facts import Facts, NothingStored
from vbatch.doctor.findings import Finding, Level, Repair, RepairFailed, info, ok, skip
from vbatch.errors import VbatchError
from vbatch.gpu import Gpu, GpuReport, needs
from vbatch.holders import Holder, Kind
from vbatch.orphans import Verdict
from vbatch.preflight import GIB, Room
from vbatch.processes import Ended, Liveness
from vbatch.store import queue, registry
from vbatch.store.records import EngineProcess

MIN_FREE_GIB = 12.0  # of the incident; holds where no model is known that would say more

MEANINGS = {
    "gpu.orphan": Meaning(
        means="An engine that vbatch started outlived its worker and still holds memory. The ledger proves that it is "
        "ours and nobody's any more.",
        remedy="vbatch doctor --fix ends it; so does the next worker when it starts.",
    ),
    "gpu.worker": Meaning(
        means="A worker of ours is at work and holds the memory that it needs.", remedy="Leave it alone."
    ),
    "gpu.foreign_engine": Meaning(
        means="A vLLM engine without a parent holds memory; another vLLM left it behind. It is not in our ledger.",
        remedy="Ask its owner; doctor never ends what it cannot prove to be ours.",
    ),
    "gpu.unproven": Meaning(
        means="A vLLM engine holds memory, and the store whose ledger says whether it is ours cannot be read.",
        remedy="Mend the store first: vbatch doctor gpu --fix --wait 60s waits for it.",
    ),
    "gpu.process": Meaning(
        means="A living program of somebody holds memory: a desktop, a notebook, ollama, a container.",
        remedy="Stop it by its owner's own command, or have vLLM use less (gpu_memory_utilization).",
    ),
    "gpu.defunct": Meaning(
        means="A process has ended but its parent has not collected it; the driver still lists its memory.",
        remedy="End its parent.",
    ),
    "gpu.unkillable": Meaning(
        means="A process was killed but waits inside the driver and cannot end.", remedy="Reboot."
    ),
    "gpu.hidden": Meaning(
        means="A process that cannot be seen from here holds memory: in another container, or another user's.",
        remedy="Look with nvidia-smi on the host, as root.",
    ),
    "gpu.ghost": Meaning(
        means="Memory is in use that no listed process holds: the driver lost track of it, or hides its owner.",
        remedy="sudo fuser -v /dev/nvidia* shows who has the device open; else reboot.",
    ),
    "gpu.memory": Meaning(
        means="Whether the free memory is enough for the configured models, by vLLM's own arithmetic "
        "(free >= total * gpu_memory_utilization), or for --min-free-gb.",
        remedy="Free memory as the holders' findings say, or lower --gpu-memory-utilization.",
    ),
}


def _holders(facts: Facts) -> Iterator[Finding]:
    """Name our orphans, on a GPU or not, then everybody else who holds memory."""
    suspects = facts.suspects
    if suspects is None:
        yield skip("gpu.orphan", f"skipped: needs {need_in_words('store.reach')}")
    found = [suspect.process for suspect in suspects or () if suspect.verdict is Verdict.ORPHAN]
    if found:
        yield _orphan(facts, found)
    others = False
    for card in facts.gpu.gpus:
        for holder in gpu_holders.holders(card, suspects):
            if holder.kind is not Kind.ORPHAN:
                others = True
                yield _holder(card, holder)
        if (surplus := gpu_holders.ghost(card)) and not _worker_on(facts, card):
            others = True
            yield Finding(
                id="gpu.ghost",
                level=Level.WARN,
                what=f"{surplus / GIB:.1f} GiB of GPU {card.index} are held by no process that the driver lists",
                why="it may be settling after a process ended, or its owner cannot be seen from here",
                commands=("sudo fuser -v /dev/nvidia*",),
            )
    if suspects is not None and not found and not others:
        yield ok("gpu.orphan", "no engine of ours outlived its worker")


def _worker_on(facts: Facts, card: Gpu) -> bool:
    """Whether a worker of ours that lives has this GPU: in a container and on WSL the driver lists nobody."""
    pid = preflight.occupant(facts.settings.state_dir, card.index)
    try:
        workers = registry.live(facts.records) if pid is not None else ()
    except (VbatchError, NothingStored):
        return False
    return any(
        worker.identity.pid == pid and processes.liveness(worker.identity) is Liveness.ALIVE
        for worker in workers
    )


def _orphan(facts: Facts, found: Sequence[EngineProcess]) -> Finding:
    pids = ", ".join(str(process.identity.pid) for process in found)
    used = _used(facts.gpu, found)
    holds = f"{used / GIB:.1f} GiB of GPU memory" if used else f"{_size(_resident(found))} of memory"
    return Finding(
        id="gpu.orphan",
        level=Level.FAIL,
        what=f"an engine of ours outlived its worker and holds {holds} (process {pids})",
        why="the next engine needs that memory; nobody waits for this one any more",
        evidence=tuple(_evidence(process) for process in found),
        commands=("vbatch doctor --fix",),
        repair=Repair(
            question=f"End the engine that outlived its worker (process {pids})?",
            carry_out=lambda: _end(facts, found),
        ),
    )


def _evidence(process: EngineProcess) -> str:
    identity = process.identity
    return (
        f"pid {identity.pid} ({process.title or 'no title'}), started at tick {identity.start_ticks} of this boot, "
        f"is in the ledger of {process.worker}, whose process is gone"
    )


def _end(facts: Facts, found: Sequence[EngineProcess]) -> str:
    before = facts.gpu
    resident = _resident(found)
    outcomes = orphans.end(facts.records, found, facts.settings.state_dir)
    for pid, outcome in outcomes.items():
        if outcome is Ended.UNKILLABLE:
            raise RepairFailed(f"process {pid} was killed but waits inside the kernel", "sudo reboot")
        if outcome is Ended.REFUSED:
            raise RepairFailed(f"the kernel does not let us end process {pid}", f"sudo kill {pid}")
    if not outcomes:
        return "it ended by itself meanwhile"
    freed = _freed(before, found)
    if freed:
        return f"ended, {freed / GIB:.1f} GiB of GPU memory came back"
    return f"ended, {_size(resident - _resident(found))} came back"


def _resident(found: Sequence[EngineProcess]) -> int:
    """Return the bytes of memory that they hold, as far as they live."""
    return sum(
        processes.resident_memory(process.identity.pid)
        for process in found
        if processes.liveness(process.identity) is Liveness.ALIVE
    )


def _size(size: int) -> str:
    return f"{size / GIB:.1f} GiB" if size >= GIB // 10 else f"{size / (1 << 20):.0f} MiB"


def _freed(before: GpuReport, found: Sequence[EngineProcess]) -> int:
    """Wait until each GPU that they were on has settled; return the bytes measured as freed."""
    freed = 0
    for card in before.gpus:
        if card.memory_known and (_pids(found) & {holder.pid for holder in card.holders}):
            after = nvml.wait_until_settled(card.index, limit=timedelta(seconds=20))
            freed += max(0, (after.free if after is not None else card.free) - card.free)
    return freed


def _used(report: GpuReport, found: Sequence[EngineProcess]) -> int:
    pids = _pids(found)
    return sum(holder.used or 0 for card in report.gpus for holder in card.holders if holder.pid in pids)


def _pids(found: Sequence[EngineProcess]) -> set[int]:
    """Return their pids as the driver knows them; in a container it knows them by others."""
    return {process.identity.pid for process in found} if processes.among_all() else set()


_HOLDER_WORDS = {
    Kind.WORKER: "a worker of ours is at work: leave it alone",
    Kind.FOREIGN_ENGINE: "another vLLM left it behind; it is not ours to end",
    Kind.UNPROVEN: "it may be ours: mend the store first, the ledger in it tells",
    Kind.PROCESS: "it is not ours to end",
    Kind.DEFUNCT: "it has ended, but its parent has not collected it",
    Kind.UNKILLABLE: "it was killed but waits inside the driver",
    Kind.HIDDEN: "it cannot be seen from here",
}
_GRAVE = frozenset({Kind.DEFUNCT, Kind.UNKILLABLE, Kind.FOREIGN_ENGINE, Kind.UNPROVEN})


def _holder(card: Gpu, holder: Holder) -> Finding:
    held = "memory" if holder.used is None else f"{holder.used / GIB:.1f} GiB"
    return Finding(
        id=f"gpu.{holder.kind}",
        level=Level.WARN if holder.kind in _GRAVE else Level.INFO,
        what=f"{held} of GPU {card.index}: {holder.who}",
        why=_HOLDER_WORDS[holder.kind],
        commands=holder.remedies,
    )


def _memory(facts: Facts) -> Iterator[Finding]:
    """Compare what is free with what the models will take."""
    if not facts.gpu.gpus:
        yield skip("gpu.memory", "no GPU, no GPU memory to check")
        return
    cards = of_the_worker(facts)
    if not cards:
        yield Finding(
            id="gpu.memory",
            level=Level.FAIL,
            what=f"there is no GPU {preflight.index(facts.settings.gpu, facts.gpu)}, which the worker would use",
            commands=("nvidia-smi -L",),
        )
    for card in facts.gpu.gpus:
        if card not in cards and card.memory_known:
            other = f"not this worker's; vbatch run-worker --gpu {card.index} would use it"
            yield info("gpu.memory", _free(card), other)
    for card in cards:
        needed, reason = _needed(facts, card)
        seen = preflight.room(card, facts.suspects, needed=needed, reason=reason)
        if card.memory_known and not facts.needs_gpu and facts.min_free_gb is None:
            yield info("gpu.memory", _free(card), "the engine of this worker does not compute on a GPU")
        elif _at_work(facts, seen):
            yield info("gpu.memory", _free(card), "a worker of ours holds what it needs")
        elif not card.memory_known:
            yield skip("gpu.memory", f"GPU {card.index}: this driver does not tell how much memory is free")
        elif seen.enough:
            yield ok("gpu.memory", seen.words)
        else:
            yield _too_little(seen)


def _free(card: Gpu) -> str:
    return f"GPU {card.index}: {card.free / GIB:.2f} of {card.total / GIB:.2f} GiB free"


def _at_work(facts: Facts, seen: Room) -> bool:
    """Whether a worker of ours has what is missing: as the driver lists it or, where it lists nobody, as we know."""
    kinds = {holder.kind for holder in seen.holders}
    return Kind.WORKER in kinds or (
        not seen.enough and kinds <= {Kind.HIDDEN} and _worker_on(facts, seen.gpu)
    )


def _too_little(seen: Room) -> Finding:
    return Finding(
        id="gpu.memory",
        level=Level.FAIL,
        what=seen.words,
        why=f"vLLM refuses to start on less; {seen.held_by}",
        evidence=tuple(
            f"{preflight.amount(holder.used)}{holder.who}: {holder.kind}" for holder in seen.holders
        ),
        commands=seen.remedies,
        passing=seen.settling,
    )


def of_the_worker(facts: Facts) -> list[Gpu]:
    """Return the GPU that ``run-worker`` computes on; another one may be small, or full of something else."""
    wanted = preflight.index(facts.settings.gpu, facts.gpu)
    return [card for card in facts.gpu.gpus if card.index == wanted]


def _needed(facts: Facts, card: Gpu) -> tuple[int, str]:
    """Return the bytes that must be free, and who wants them: a person, the models that wait, or the default."""
    if facts.min_free_gb is not None:
        return int(facts.min_free_gb * GIB), "--min-free-gb"
    shares = {model: needs.utilization(facts.options.engine_args(model)) for model in wanted_models(facts)}
    wanted = [(share, model) for model, share in shares.items() if share is not None]
    if wanted:
        utilization, model = max(wanted)
        return needs.required(card.total, utilization), f"{model}: gpu_memory_utilization {utilization:g}"
    return min(int(MIN_FREE_GIB * GIB), needs.required(card.total, needs.DEFAULT_UTILIZATION)), "the default"


def wanted_models(facts: Facts) -> set[str]:
    """Return the models that the settings name or the queue waits for."""
    named = {*facts.settings.models, *filter(None, [facts.settings.preload])}
    try:
        return named | {entry.model for entry in queue.waiting(facts.records)}
    except (VbatchError, NothingStored):
        return named


CHECKS = (
    Check(
        name="gpu.holders", group=Group.GPU, run=_holders, after=("store.reach",), limit=timedelta(minutes=1)
    ),
    Check(name="gpu.memory", group=Group.GPU, run=_memory, needs=("gpu.driver", "gpu.holders")),
)
