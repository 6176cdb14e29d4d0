"""Find the workers that are dead, and recover what they left: chunks, engine processes, ledger rows.

The wall clock is never used. For a worker of this host and boot, its process decides at once; after a reboot no worker
of the earlier boot still runs. A hung or remote worker counts as dead when its heartbeat has not changed for a whole
lease, by the monotonic clock of this process.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from vbatch import recovery
from vbatch.recovery import orphans
from vbatch.store import Store, crashes, registry, staging
from vbatch.store.records import Worker
from vbatch.system import processes
from vbatch.system.processes import ProcessIdentity

log = logging.getLogger(__name__)

SAME_SECONDS = timedelta(seconds=10)  # a worker's last heartbeat may be 5 s older than its death
LOOK_AGAIN = timedelta(
    seconds=3
)  # after this, all workers that died at the same moment can be seen to be dead


class _Observation(NamedTuple):
    heartbeat: int
    since: float  # when this value of the heartbeat was first seen
    last: float  # when it was last read


class Watch:
    """What was last seen of every worker that cannot be judged by its process.

    After a gap of half a lease the observation starts over: the store was unreachable, so no worker could beat either.
    """

    def __init__(self, lease: timedelta) -> None:
        self._lease = lease.total_seconds()
        self._seen: dict[str, _Observation] = {}

    def lapsed(self, worker: Worker) -> bool:
        """Whether this worker's heartbeat has not changed for a whole lease, observed by this process itself."""
        now = time.monotonic()
        seen = self._seen.get(worker.id)
        watched = (
            seen is not None and seen.heartbeat == worker.heartbeat and now - seen.last < self._lease / 2
        )
        since = seen.since if seen is not None and watched else now
        self._seen[worker.id] = _Observation(worker.heartbeat, since, now)
        return now - since >= self._lease


def recover(store: Store, watch: Watch, *, me: str, state_dir: Path) -> int:
    """Return the chunks of dead workers to the queue; return how many those were.

    Their engine processes are ended first, if the rules of ``vbatch.recovery.orphans`` allow it: an engine that a dead
    worker left behind holds the memory that the next one needs.
    """
    orphans.clear(store, state_dir)
    chunks = release_chunks(store)
    recovery.forget_dead_commands(store)
    for worker in (*recovery.alive(store), *registry.commands(store)):
        if worker.id != me and watch.lapsed(worker):
            reclaimed = crashes.reclaim(store, worker=worker.id, heartbeat=worker.heartbeat)
            log.warning("worker.recovered worker=%s chunks=%d reason=lease_lapsed", worker.id, reclaimed)
            chunks += reclaimed
    return chunks


def release_chunks(store: Store) -> int:
    """Return the chunks of workers without a process to the queue; return how many those were.

    Workers of this boot that are found dead at the same time died together, so no request was the cause. Before a
    request is blamed, the workers are checked a second time, and also the signals that others got in those seconds.
    """
    here = processes.current()
    dead = recovery.dead(store)
    at_stake = crashes.at_stake(store, workers=[worker.id for worker in dead])
    if at_stake:
        time.sleep(LOOK_AGAIN.total_seconds())
        dead = recovery.dead(store)
    several = sum(_same_boot(worker, here) for worker in dead) > 1
    lacking = recovery.killed_for_memory(dead)
    chunks = 0
    # First those at stake: a worker that checks at the same time must not find one of them as the only dead one.
    for worker in sorted(dead, key=lambda worker: worker.id not in at_stake):
        together = several or (worker.id in at_stake and _in_time_of_a_signal(store, worker))
        reclaimed = crashes.reclaim(
            store, worker=worker.id, heartbeat=None, vanished=_same_boot(worker, here), together=together
        )
        log.info("worker.recovered worker=%s chunks=%d reason=process_gone", worker.id, reclaimed)
        if worker.id in lacking:
            log.warning("worker.killed worker=%s of=%s", worker.id, lacking[worker.id])
        chunks += reclaimed
    return chunks


def _same_boot(worker: Worker, here: ProcessIdentity) -> bool:
    """Whether it died on this boot: after a power cut no request is to blame."""
    return worker.identity.boot_id == here.boot_id


def _in_time_of_a_signal(store: Store, worker: Worker) -> bool:
    return registry.asked_to_stop(
        store, boot_id=worker.identity.boot_id, around=worker.heartbeat_at, within=SAME_SECONDS
    )


def sweep(store: Store) -> None:
    """Remove what a ``submit`` that crashed had stored; it was never visible."""
    removed = staging.sweep(store, gone=processes.is_gone)
    if removed:
        log.info("submit.swept abandoned=%d", removed)
