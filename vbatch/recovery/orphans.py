"""Engine processes that outlived their worker: find them in the ledger, prove them ours, end them.

The kill rules, all of which must hold (each is a clause of ``judge``, and each has a test that fails without it):
the process is the very one that the ledger names (boot, pid, start time), in our own pid namespace; its title
carries the token of a load that is written down in the state folder (``vbatch.recovery.evidence``) by the user it
runs as; its worker is provably gone, by the store and by that file; it is not below any worker that lives; it is
neither this process nor above it. Neither the ledger nor a title decides alone.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from vbatch.recovery import evidence
from vbatch.recovery.evidence import Evidence
from vbatch.store import Store, registry
from vbatch.store.records import EngineProcess, Worker
from vbatch.system import ending, processes
from vbatch.system.ending import Ended
from vbatch.system.processes import Liveness

log = logging.getLogger(__name__)

GRACE = timedelta(seconds=10)  # between SIGTERM and SIGKILL; vLLM's engine leaves 3 to 6 s after a SIGTERM


class Verdict(StrEnum):
    """What a process of the ledger is, and so whether it may be ended."""

    ORPHAN = "orphan"  # an engine left behind by a dead worker: the only kind that may be ended
    WORKER_LIVES = "worker_lives"
    WORKER_UNKNOWN = "worker_unknown"  # whether its worker lives cannot be known from here
    BELOW_A_WORKER = "below_a_worker"  # a living worker is above it
    UNPROVEN = "unproven"  # the ledger alone names it: an older vbatch, another state folder, or a forged row
    ELSEWHERE = "elsewhere"  # another pid namespace or machine: its pid means nothing here
    OF_ANOTHER_USER = "of_another_user"
    OURSELVES = "ourselves"  # this process, or one that it runs under
    GONE = "gone"


@dataclass(frozen=True, slots=True, kw_only=True)
class Suspect:
    """A process of the ledger with its verdict."""

    process: EngineProcess
    verdict: Verdict


def suspects(store: Store, state_dir: Path) -> list[Suspect]:
    """Return the ledger's processes that are not gone, each with its verdict."""
    entries = registry.ledger(store)
    workers = registry.of_boot(store, boot_id=processes.current().boot_id) if entries else []
    judged = [Suspect(process=entry, verdict=judge(entry, workers, state_dir)) for entry in entries]
    return [suspect for suspect in judged if suspect.verdict is not Verdict.GONE]


def judge(process: EngineProcess, workers: Collection[Worker], state_dir: Path) -> Verdict:
    """Apply the kill rules. ``workers`` are all that registered on this boot, stopped ones too."""
    match processes.liveness(process.identity):
        case Liveness.GONE:
            return Verdict.GONE
        case Liveness.UNKNOWN:
            return Verdict.ELSEWHERE
    pid = process.identity.pid
    above_us = processes.ancestors(os.getpid())
    if above_us is None or pid in (os.getpid(), *above_us):
        return Verdict.OURSELVES
    found = evidence.find(state_dir, processes.title(pid))
    return _needed(process, workers, found) or _not_ours(pid, found) or Verdict.ORPHAN


def _needed(process: EngineProcess, workers: Collection[Worker], found: Evidence | None) -> Verdict | None:
    """Return who may still need it: the worker that started it, or one that is above it."""
    its_own = [worker.identity for worker in workers if worker.id == process.worker]
    if found is not None:
        its_own.append(found.worker)
    lives = {processes.liveness(identity) for identity in its_own}
    if Liveness.ALIVE in lives:
        return Verdict.WORKER_LIVES
    if not any(worker.id == process.worker for worker in workers) or Liveness.UNKNOWN in lives:
        return Verdict.WORKER_UNKNOWN
    above = processes.ancestors(process.identity.pid)
    if above is None:  # who cannot be placed is not ended
        return Verdict.BELOW_A_WORKER
    identities = {processes.identify(pid) for pid in above}
    if any(worker.identity in identities for worker in workers):
        return Verdict.BELOW_A_WORKER
    return None


def _not_ours(pid: int, found: Evidence | None) -> Verdict | None:
    """Return why it is not this user's to end. Root, too, ends only what runs as the worker's own user."""
    if found is None:
        return Verdict.UNPROVEN
    return None if processes.owner(pid) == found.uid else Verdict.OF_ANOTHER_USER


def end(
    store: Store, orphans: Sequence[EngineProcess], state_dir: Path, *, grace: timedelta = GRACE
) -> dict[int, Ended]:
    """End processes that are orphans at this very moment; return how each pid ended, without the others.

    All are asked at once, and those that do not obey are killed. What is gone leaves the ledger.
    """
    workers = registry.of_boot(store, boot_id=processes.current().boot_id)
    proven = [orphan for orphan in orphans if judge(orphan, workers, state_dir) is Verdict.ORPHAN]
    outcomes = ending.end_all([orphan.identity for orphan in proven], grace=grace)
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


def clear(store: Store, state_dir: Path) -> dict[int, Ended]:
    """End every orphan, and forget what is gone: in the ledger, and in the state folder.

    Returns how each pid ended.
    """
    entries = registry.ledger(store)
    outcomes = end(store, entries, state_dir) if entries else {}
    gone = [entry.identity for entry in entries if processes.liveness(entry.identity) is Liveness.GONE]
    registry.forget(store, processes=gone)
    forget_tokens(state_dir)
    return outcomes


def forget_tokens(state_dir: Path, *, own: bool = False) -> None:
    """Remove the evidence of loads of which no process lives, and whose worker is gone or (``own``) this process."""
    ended = [
        token
        for token, worker in evidence.tokens(state_dir).items()
        if processes.liveness(worker) is Liveness.GONE or (own and worker == processes.current())
    ]
    titles = processes.titles() if ended else []
    for token in ended:
        if not any(title.startswith(evidence.title_prefix(token)) for title in titles):
            evidence.withdraw(state_dir, token)
