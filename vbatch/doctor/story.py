"""What happened to this machine, in one line, from vbatch's own records alone, so that no root is needed.

A worker writes a heartbeat every few seconds, and its end when it stops. One of an earlier boot without an end was cut
off: by the power, a reset, or a crash of the whole machine. Unless another worker ran for a while after it: then it
crashed alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from vbatch.doctor.facts import Facts
from vbatch.store import catalog, registry
from vbatch.store.records import Worker
from vbatch.system import processes
from vbatch.system.processes import Liveness

AT_ONCE = timedelta(minutes=2)  # between the last beats of workers that one power cut ended


@dataclass(frozen=True, slots=True, kw_only=True)
class Story:
    """What was cut off, when, and how things stand now."""

    cut_at: datetime
    workers: int
    saved: int
    total: int
    unfinished_batches: int
    resumed: bool

    @property
    def words(self) -> str:
        """The story in one line."""
        when = clock(self.cut_at)
        cut = f"power was lost, or the machine was reset, at about {when}"
        if not self.unfinished_batches:
            return f"{cut}; nothing was lost: every batch is finished"
        continues = "the work continues" if self.resumed else "the work continues when a worker runs"
        return f"{cut}; {self.saved:,} of {self.total:,} requests are saved; nothing was lost; {continues}"


def of(facts: Facts) -> Story | None:
    """Return the story of the last boot; None where it ended in good order, or was without a worker.

    Raises what the store raises.
    """
    here = processes.current()
    workers = [
        worker for worker in registry.recent(facts.records, limit=100) if worker.identity.host == here.host
    ]
    earlier = [worker for worker in workers if worker.identity.boot_id != here.boot_id]
    if not earlier:
        return None
    last_boot = max(earlier, key=lambda worker: worker.heartbeat_at).identity.boot_id
    of_boot = [worker for worker in earlier if worker.identity.boot_id == last_boot]
    last_sign = max(worker.stopped_at or worker.heartbeat_at for worker in of_boot)
    cut = [worker for worker in of_boot if worker.lost and last_sign - worker.heartbeat_at <= AT_ONCE]
    if not cut:
        return None
    progress = catalog.progress(facts.records)
    return Story(
        cut_at=max(worker.heartbeat_at for worker in cut),
        workers=len(cut),
        saved=progress.completed + progress.failed,
        total=progress.total,
        unfinished_batches=progress.unfinished_batches,
        resumed=facts.of_service or any(_lives(worker) for worker in workers),
    )


def _lives(worker: Worker) -> bool:
    return worker.stopped_at is None and processes.liveness(worker.identity) is Liveness.ALIVE


def clock(moment: datetime) -> str:
    """Write a time of day as this machine's clock shows it, with the date where it was not today."""
    local = moment.astimezone()
    today = datetime.now(UTC).astimezone().date()
    if local.date() == today:
        return f"{local:%H:%M}"
    return f"{local:%H:%M} on {local:%-d %B}" + ("" if local.year == today.year else f" {local.year}")
