"""Checks of GPU memory: who holds it, engines of dead workers first, and whether what is free is enough."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from datetime import timedelta

from vbatch import gpu as nvml
from vbatch import recovery
from vbatch.doctor.facts import Facts, NothingStored
from vbatch.doctor.findings import Check, Entry, Finding, Level, Repair, RepairFailed
from vbatch.engine.kinds import KINDS
from vbatch.errors import VbatchError
from vbatch.gpu import Gpu, GpuReport
from vbatch.gpu_memory import cards as gpu_cards
from vbatch.gpu_memory import check as memory_check
from vbatch.gpu_memory import holders as gpu_holders
from vbatch.gpu_memory import locks as gpu_locks
from vbatch.gpu_memory import needs
from vbatch.gpu_memory.check import MemoryCheck
from vbatch.gpu_memory.holders import Holder, Kind
from vbatch.recovery import orphans
from vbatch.recovery.orphans import Verdict
from vbatch.store import queue
from vbatch.store.records import EngineProcess
from vbatch.system import processes, wsl
from vbatch.system.ending import Ended
from vbatch.system.processes import Liveness
from vbatch.text import GIB, size

MIN_FREE_GIB = 12.0  # of the incident; holds where no model is known that needs more or less

ORPHAN = Entry(
    id="gpu.orphan",
    means="an engine whose worker is dead holds memory that the next engine needs; the next worker ends it when it "
    "starts",
    commands=("vbatch doctor --fix",),
)
# What else may hold memory. Each comes with the polite command for its owner.
HOLDERS = {
    Kind.WORKER: Entry(
        id="gpu.worker", means="a vbatch worker is working and needs the memory", advice="leave it alone"
    ),
    Kind.FOREIGN_ENGINE: Entry(
        id="gpu.foreign_engine",
        means="a vLLM engine without a parent that vbatch's ledger does not list: another vLLM left it behind, and "
        "doctor ends only what vbatch provably started",
        advice="ask its owner",
    ),
    Kind.UNPROVEN: Entry(
        id="gpu.unproven",
        means="vbatch may have started this process, but nothing proves it: the store cannot be read, or its ledger "
        "alone names the process (an older vbatch, another state folder, a changed store); doctor does not end it",
        advice="fix the store first (vbatch doctor gpu --fix --wait 60s waits for it), or ask the owner of the process",
    ),
    Kind.PROCESS: Entry(
        id="gpu.process",
        means="a running program of a user holds memory (a desktop, a notebook, a container); doctor does not end it",
        advice="stop it with its owner's own command, or let vLLM use less (gpu_memory_utilization)",
    ),
    Kind.DEFUNCT: Entry(
        id="gpu.defunct",
        means="the process has ended, but its parent has not collected it, and the driver still lists its memory",
        advice="end its parent",
    ),
    Kind.UNKILLABLE: Entry(
        id="gpu.unkillable",
        means="the process was killed but waits inside the driver and cannot end",
        advice="reboot",
    ),
    Kind.HIDDEN: Entry(
        id="gpu.hidden",
        means="a process that cannot be seen from here holds memory: it is in another container, or another user's",
        advice="run nvidia-smi on the host, as root",
    ),
}
GHOST = Entry(
    id="gpu.ghost",
    means="the driver may still free the memory of a process that has ended, or its owner cannot be seen from here",
    commands=("sudo fuser -v /dev/nvidia*",),
    advice="if no process has the device open, reboot",
)
MEMORY = Entry(
    id="gpu.memory",
    means="whether the free memory is enough for the models by vLLM's own arithmetic (free >= total * "
    "gpu_memory_utilization), or for --min-free-gb; vLLM refuses to start on less",
    commands=("nvidia-smi -L",),
    advice="free memory as the findings about its holders say, or lower --gpu-memory-utilization",
)

_SERIOUS = frozenset({Kind.DEFUNCT, Kind.UNKILLABLE, Kind.FOREIGN_ENGINE, Kind.UNPROVEN})


def _holders(facts: Facts) -> Iterator[Finding]:
    """Name the engines that dead workers left behind, on a GPU or not, then every other holder of memory."""
    suspects = facts.suspects
    if suspects is None:
        yield ORPHAN.skip("skipped: needs the store")
    found = [suspect.process for suspect in suspects or () if suspect.verdict is Verdict.ORPHAN]
    if found:
        yield _orphan(facts, found)
    others = False
    for card in facts.gpu.gpus:
        for holder in gpu_holders.holders(card, suspects):
            if holder.kind is not Kind.ORPHAN:
                others = True
                yield _holder(card, holder)
        if (surplus := gpu_holders.unlisted(card)) and not _worker_on(facts, card):
            others = True
            held = f"{surplus / GIB:.1f} GiB of GPU {card.index} are held by no process that the driver lists"
            yield GHOST.skip(f"{held}: on WSL2 it lists none") if wsl.is_wsl() else GHOST.warn(held)
    on_a_card = {holder.pid for card in facts.gpu.gpus for holder in card.holders}
    for holder in gpu_holders.unproven(suspects or ()):
        if holder.pid not in on_a_card:
            others = True
            yield HOLDERS[Kind.UNPROVEN].warn(
                f"the ledger alone calls this process an engine: {holder.who}", commands=holder.remedies
            )
    if suspects is not None and not found and not others:
        yield ORPHAN.ok("no engine was left behind by a dead worker")


def _worker_on(facts: Facts, card: Gpu) -> bool:
    """Whether a live worker has this GPU: in a container and on WSL the driver lists no process."""
    pid = gpu_locks.last_worker_pid(facts.settings.state_dir, gpu_cards.Card(card.index))
    try:
        workers = recovery.alive(facts.records) if pid is not None else ()
    except (VbatchError, NothingStored):
        return False
    occupant = processes.identify(pid) if pid is not None else None
    return any(worker.identity == occupant for worker in workers)


def _orphan(facts: Facts, found: Sequence[EngineProcess]) -> Finding:
    pids = ", ".join(str(process.identity.pid) for process in found)
    used = _used(facts.gpu, found)
    holds = f"{used / GIB:.1f} GiB of GPU memory" if used else f"{size(_resident(found))} of memory"
    return ORPHAN.fail(
        f"an engine left behind by a dead worker holds {holds} (process {pids})",
        evidence=tuple(_evidence(process) for process in found),
        repair=Repair(
            question=f"End the engine that a dead worker left behind (process {pids})?",
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
            raise RepairFailed(f"the kernel does not let vbatch end process {pid}", f"sudo kill {pid}")
    if not outcomes:
        return "it has ended by itself"
    freed = _freed(before, found)
    if freed:
        return f"ended, {freed / GIB:.1f} GiB of GPU memory came back"
    return f"ended, {size(resident - _resident(found))} came back"


def _resident(found: Sequence[EngineProcess]) -> int:
    """Return the bytes of memory that they hold, as far as they live."""
    return sum(
        processes.resident_memory(process.identity.pid)
        for process in found
        if processes.liveness(process.identity) is Liveness.ALIVE
    )


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


def _holder(card: Gpu, holder: Holder) -> Finding:
    held = "memory" if holder.used is None else f"{holder.used / GIB:.1f} GiB"
    return HOLDERS[holder.kind].found(
        Level.WARN if holder.kind in _SERIOUS else Level.INFO,
        f"{held} of GPU {card.index}: {holder.who}",
        commands=holder.remedies,
    )


def _memory(facts: Facts) -> Iterator[Finding]:
    """Compare what is free with what the models will take."""
    if not facts.gpu.gpus:
        yield MEMORY.skip("no GPU reports its memory here")
        return
    try:
        numbers = gpu_cards.of_workers(facts.settings, facts.gpu)
    except VbatchError as error:
        yield MEMORY.fail(error.message, why="", commands=(error.hint or "nvidia-smi -L",))
        return
    cards = [card for card in facts.gpu.gpus if card.index in numbers]
    for number in sorted({*numbers} - {card.index for card in cards}):
        yield MEMORY.fail(f"there is no GPU {number}, which the worker would use", why="")
    for card in facts.gpu.gpus:
        if card not in cards and card.memory_known:
            other = f"not this worker's; vbatch run-worker --gpu {card.index} would use it"
            yield MEMORY.info(_free(card), why=other)
    for card in cards:
        needed, reason = _needed(facts, card)
        seen = memory_check.compare(card, facts.suspects, needed=needed, reason=reason)
        if card.memory_known and not facts.needs_gpu and facts.min_free_gb is None:
            yield MEMORY.info(_free(card), why="the engine of this worker does not compute on a GPU")
        elif _at_work(facts, seen):
            yield MEMORY.info(_free(card), why="a vbatch worker holds what it needs")
        elif not card.memory_known:
            yield MEMORY.skip(f"GPU {card.index}: this driver does not report how much memory is free")
        elif seen.enough:
            yield MEMORY.ok(seen.summary)
        else:
            yield _too_little(seen, passing=seen.settling and not (wsl.is_wsl() and facts.has_settled(card)))


def _free(card: Gpu) -> str:
    return f"GPU {card.index}: {card.free / GIB:.2f} of {card.total / GIB:.2f} GiB free"


def _at_work(facts: Facts, seen: MemoryCheck) -> bool:
    """Whether a live worker has what is missing, by the driver's list or, where that is empty, by its lock."""
    kinds = {holder.kind for holder in seen.holders}
    unseen = not seen.enough and kinds <= {Kind.HIDDEN}
    return Kind.WORKER in kinds or (unseen and _worker_on(facts, seen.gpu))


def _too_little(seen: MemoryCheck, *, passing: bool) -> Finding:
    """Report it. On WSL2 no process is ever listed: what Windows holds differs from what settles in that it stays."""
    return MEMORY.fail(
        seen.summary,
        why=f"vLLM refuses to start on less; {seen.held_by}",
        evidence=tuple(f"{holder.summary}: {holder.kind}" for holder in seen.holders),
        commands=seen.remedies,
        passing=passing,
    )


def _needed(facts: Facts, card: Gpu) -> tuple[int, str]:
    """Return the bytes that must be free, and who wants them: a person, the models that wait, or the default."""
    if facts.min_free_gb is not None:
        return int(facts.min_free_gb * GIB), "--min-free-gb"
    wanted = [
        (asked[0], f"{model}: {asked[1]}")
        for model in wanted_models(facts)
        if (asked := needs.at_start(card.total, facts.settings.engine_args(model))) is not None
    ]
    if wanted:
        return max(wanted)
    return min(int(MIN_FREE_GIB * GIB), needs.required(card.total, needs.DEFAULT_UTILIZATION)), "the default"


def wanted_models(facts: Facts) -> set[str]:
    """Return the models that the settings name or the queue waits for, as far as the engine serves them."""
    wanted = {*facts.settings.models, *filter(None, [facts.settings.preload])}
    with suppress(VbatchError, NothingStored):
        wanted |= {entry.model for entry in queue.waiting(facts.records)}
    return set(filter(KINDS[facts.settings.engine].serves, wanted))


CHECKS = (
    Check(
        name="gpu.holders",
        finds=(ORPHAN, *HOLDERS.values(), GHOST),
        run=_holders,
        provides="the engine of the dead worker to be ended first",
        after=("store.reach",),
        limit=timedelta(minutes=1),
    ),
    Check(name="gpu.memory", finds=(MEMORY,), run=_memory, needs=("gpu.driver", "gpu.holders")),
)
