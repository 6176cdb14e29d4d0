"""Engine processes that outlived their worker: find them in the ledger, prove them ours, end them.

The kill rules, all of which must hold (each is a clause of ``judge``, and each has a test that fails without it):
the process is the very one that the ledger names (boot, pid, start time), in our own pid namespace; it belongs
to our user, or we are root; its worker is provably gone; it is not below any worker that lives; it is neither we
nor above us. What a process is called decides nothing.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum

from vbatch import processes
from vbatch.processes import Ended, Liveness
from vbatch.store import Store, registry
from vbatch.store.records import EngineProcess, Worker

log = logging.getLogger(__name__)

GRACE = timedelta(seconds=10)  # between SIGTERM and SIGKILL; vLLM's engine leaves 3 to 6 s after a SIGTERM


class Verdict(StrEnum):
    """What a process of the ledger is, and so whether it may be ended."""

    ORPHAN = "orphan"  # ours, and nobody's any more: the only one that may be ended
    WORKER_LIVES = "worker_lives"
    WORKER_UNKNOWN = "worker_unknown"  # nobody can tell from here whether its worker lives
    BELOW_A_WORKER = "below_a_worker"  # a living worker is above it
    ELSEWHERE = "elsewhere"  # another pid namespace or machine: its pid means nothing here
    OF_ANOTHER_USER = "of_another_user"
    OURSELVES = "ourselves"  # we, or a process that we run under
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A process of the ledger with its verdict."""

    process: EngineProcess
    verdict: Verdict


def suspects(store: Store) -> list[Suspect]:
    """Return the ledger's processes that are not gone, each with its verdict."""
    entries = registry.ledger(store)
    workers = registry.of_boot(store, boot_id=processes.current().boot_id) if entries else []
    judged = [Suspect(process=entry, verdict=judge(entry, workers)) for entry in entries]
    return [suspect for suspect in judged if suspect.verdict is not Verdict.GONE]


def judge(process: EngineProcess, workers: Collection[Worker]) -> Verdict:
    """Apply the kill rules. ``workers`` are all that registered on this boot, stopped ones too."""
    match processes.liveness(process.identity):
        case Liveness.GONE:
            return Verdict.GONE
        case Liveness.UNKNOWN:
            return Verdict.ELSEWHERE
        case Liveness.ALIVE:
            return _not_ours(process) or _needed(process, workers) or Verdict.ORPHAN


def _not_ours(process: EngineProcess) -> Verdict | None:
    pid = process.identity.pid
    above_us = processes.ancestors(os.getpid())
    if above_us is None or pid in (os.getpid(), *above_us):
        return Verdict.OURSELVES
    if processes.owner(pid) != os.geteuid() != 0:
        return Verdict.OF_ANOTHER_USER
    return None


def _needed(process: EngineProcess, workers: Collection[Worker]) -> Verdict | None:
    """Say who may still need it: the worker that started it, or one that is above it."""
    its_own = [worker for worker in workers if worker.id == process.worker]
    lives = {processes.liveness(worker.identity) for worker in its_own}
    if Liveness.ALIVE in lives:
        return Verdict.WORKER_LIVES
    if not its_own or Liveness.UNKNOWN in lives:
        return Verdict.WORKER_UNKNOWN
    above = processes.ancestors(process.identity.pid)
    if above is None:  # who cannot be placed is not ended
        return Verdict.BELOW_A_WORKER
    identities = {processes.identify(pid) for pid in above}
    if any(worker.identity in identities for worker in workers):
        return Verdict.BELOW_A_WORKER
    return None


def end(store: Store, orphans: Sequence[EngineProcess], *, grace: timedelta = GRACE) -> dict[int, Ended]:
    """End processes that are orphans at this very moment; return how each pid ended, without the others.

    All are asked at once, and those that do not obey are killed. What is gone leaves the ledger.
    """
    workers = registry.of_boot(store, boot_id=processes.current().boot_id)
    proven = [orphan for orphan in orphans if judge(orphan, workers) is Verdict.ORPHAN]
    outcomes = processes.end_all([orphan.identity for orphan in proven], grace=grace)
    lives_on = (Ended.UNKILLABLE, Ended.REFUSED)
    gone = [orphan for orphan in proven if outcomes[orphan.identity] not in lives_on]
    registry.forget(store, processes=[orphan.identity for orphan in gone])
    for orphan in proven:
        log.info(
            "orphan.ended pid=%d outcome=%s worker=%s",
            orphan.identity.pid,
            outcomes[orphan.identity],
            orphan.worker,
        )
    return {orphan.identity.pid: outcomes[orphan.identity] for orphan in proven}


def clear(store: Store) -> dict[int, Ended]:
    """End every orphan, and take out of the ledger what is gone; return how each pid ended."""
    entries = registry.ledger(store)
    if not entries:
        return {}
    outcomes = end(store, entries)
    gone = [entry.identity for entry in entries if processes.liveness(entry.identity) is Liveness.GONE]
    registry.forget(store, processes=gone)
    return outcomes
