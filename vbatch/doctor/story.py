"""What happened to this machine, in one line: told from vbatch's own records, so that no root is needed.

A worker writes a beat every 5 seconds, and its end when it stops. One of an earlier boot without an end
was cut off: by the power, a reset, or a crash of the whole machine. Unless another one went on for a while after
it: then it ended alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from vbatch import processes
from vbatch.doctor.catalogue import Meaning
from vbatch.doctor.checks import Check, Group
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, info, ok
from vbatch.processes import Liveness
from vbatch.store import catalog, registry
from vbatch.store.records import Worker

MEANINGS = {
    "host.shutdown": Meaning(
        means="How the last boot ended for the workers of this machine: in good order, or cut off.",
        remedy="Nothing: what was accepted is kept, and a worker goes on where it was cut off.",
    ),
}

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
        """Tell it."""
        when = _clock(self.cut_at)
        cut = f"power was lost, or the machine was reset, at about {when}"
        if not self.unfinished_batches:
            return f"{cut}; nothing was lost: every batch is finished"
        goes_on = "it goes on" if self.resumed else "it goes on when a worker runs"
        return f"{cut}; {self.saved:,} of {self.total:,} requests are saved; nothing was lost; {goes_on}"


def tell(facts: Facts) -> Story | None:
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
    last_boot = max(earlier, key=lambda worker: worker.beat_at).identity.boot_id
    of_boot = [worker for worker in earlier if worker.identity.boot_id == last_boot]
    last_sign = max(worker.stopped_at or worker.beat_at for worker in of_boot)
    cut = [worker for worker in of_boot if worker.lost and last_sign - worker.beat_at <= AT_ONCE]
    if not cut:
        return None
    progress = catalog.progress(facts.records)
    return Story(
        cut_at=max(worker.beat_at for worker in cut),
        workers=len(cut),
        saved=progress.completed + progress.failed,
        total=progress.total,
        unfinished_batches=progress.unfinished_batches,
        resumed=facts.of_service or any(_lives(worker) for worker in workers),
    )


def _lives(worker: Worker) -> bool:
    return worker.stopped_at is None and processes.liveness(worker.identity) is Liveness.ALIVE


def _clock(moment: datetime) -> str:
    """Write a time of day as this machine's clock shows it, with the date where it was not today."""
    local = moment.astimezone()
    today = datetime.now(UTC).astimezone().date()
    if local.date() == today:
        return f"{local:%H:%M}"
    return f"{local:%H:%M} on {local:%-d %B}" + ("" if local.year == today.year else f" {local.year}")


def _shutdown(facts: Facts) -> Iterator[Finding]:
    """Say how the last boot ended."""
    story = tell(facts)
    if story is None:
        yield ok("host.shutdown", "no worker was cut off at the end of the last boot")
        return
    cut = f"{story.workers} worker{'s were' if story.workers > 1 else ' was'} cut off at about {_clock(story.cut_at)}"
    yield info("host.shutdown", f"the last shutdown was not clean: {cut}", "saved results are all there")


CHECKS = (Check(name="host.shutdown", group=Group.HOST, run=_shutdown, needs=("store.reach", "store.state")),)
