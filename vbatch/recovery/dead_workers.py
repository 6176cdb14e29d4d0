"""Find out which workers are dead, and take back what they left: chunks, engine processes, ledger rows.

No wall clock decides. On the same boot of the same host the process itself decides at once; after a reboot
nobody of the earlier boot lives. A hung or remote worker is watched: its beat must stand still for a whole
lease of our own monotonic time.
"""

from __future__ import annotations

import logging
import time
from datetime import timedelta
from pathlib import Path
from typing import NamedTuple

from vbatch import recovery
from vbatch.recovery import orphans
from vbatch.store import Store, deaths, registry, staging
from vbatch.store.records import Worker
from vbatch.system import processes
from vbatch.system.identity import ProcessIdentity

log = logging.getLogger(__name__)

SAME_SECONDS = timedelta(seconds=10)  # a worker's last sign of life may be 5 s older than its death
LOOK_AGAIN = timedelta(seconds=3)  # after which all that died in one moment are seen to be gone


class _Sight(NamedTuple):
    beat: int
    since: float  # when the beat was first seen to be this
    last: float  # when it was last looked at


class Watch:
    """What was last seen of every worker that cannot be judged by its process.

    Who looks away for half a lease (the store was out of reach, so that nobody could beat either) begins anew.
    """

    def __init__(self, lease: timedelta) -> None:
        self._lease = lease.total_seconds()
        self._seen: dict[str, _Sight] = {}

    def lapsed(self, worker: Worker) -> bool:
        """Whether this worker's beat has stood still for a whole lease, as we have seen with our own eyes."""
        now = time.monotonic()
        seen = self._seen.get(worker.id)
        watched = seen is not None and seen.beat == worker.beat and now - seen.last < self._lease / 2
        since = seen.since if seen is not None and watched else now
        self._seen[worker.id] = _Sight(worker.beat, since, now)
        return now - since >= self._lease


def recover(store: Store, watch: Watch, *, me: str, state_dir: Path) -> int:
    """Give the chunks of dead workers back to the queue and return how many those were.

    Their engine processes are ended first, where the kill rules allow it (``vbatch.recovery.orphans``): an engine that
    a dead worker left behind holds the memory that the next one needs.
    """
    orphans.clear(store, state_dir)
    chunks = release_chunks(store)
    for worker in recovery.alive(store):
        if worker.id != me and watch.lapsed(worker):
            reclaimed = deaths.reclaim(store, worker=worker.id, beat=worker.beat)
            log.warning("worker.recovered worker=%s chunks=%d reason=lease_lapsed", worker.id, reclaimed)
            chunks += reclaimed
    return chunks


def release_chunks(store: Store) -> int:
    """Give back the chunks of workers that are provably gone, and return how many those were.

    Workers of this boot that are found gone in one look died together: whatever ended them, it was no request.
    Before a request is blamed we look again, and for a signal that another worker received in those seconds.
    """
    here = processes.current()
    dead = recovery.dead(store)
    at_stake = deaths.at_stake(store, workers=[worker.id for worker in dead])
    if at_stake:
        time.sleep(LOOK_AGAIN.total_seconds())
        dead = recovery.dead(store)
    several = sum(_same_boot(worker, here) for worker in dead) > 1
    chunks = 0
    # First those at stake: who looks at the same time must not find one of them as the only one that is left.
    for worker in sorted(dead, key=lambda worker: worker.id not in at_stake):
        together = several or (worker.id in at_stake and _in_time_of_a_signal(store, worker))
        reclaimed = deaths.reclaim(
            store, worker=worker.id, beat=None, vanished=_same_boot(worker, here), together=together
        )
        log.info("worker.recovered worker=%s chunks=%d reason=process_gone", worker.id, reclaimed)
        chunks += reclaimed
    return chunks


def _same_boot(worker: Worker, here: ProcessIdentity) -> bool:
    """Whether it died on this boot: after a power cut nobody is to blame."""
    return worker.identity.boot_id == here.boot_id


def _in_time_of_a_signal(store: Store, worker: Worker) -> bool:
    return registry.asked_to_stop(
        store, boot_id=worker.identity.boot_id, around=worker.beat_at, within=SAME_SECONDS
    )


def sweep(store: Store) -> None:
    """Remove what a ``submit`` that died had stored so far; nobody ever saw it."""
    removed = staging.sweep(store, gone=processes.is_gone)
    if removed:
        log.info("submit.swept abandoned=%d", removed)
