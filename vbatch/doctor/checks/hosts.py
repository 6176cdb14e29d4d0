"""Checks of several hosts on one store: who works where, who is silent, and files that wait for their host."""

from __future__ import annotations

from collections.abc import Iterator

from vbatch import recovery
from vbatch.batches import is_silent, waits_for
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Check, Entry, Finding
from vbatch.protocol import BatchStatus
from vbatch.store import catalog
from vbatch.store.records import Worker
from vbatch.text import duration

SHOWN = 5  # batches that are shown one by one
LOOKED_AT = 50
_UUID_SHOWN = len("GPU-8f3c21aa")

WORKERS = Entry(
    id="queue.workers",
    means="the workers of every host, with their GPUs; one that is silent hangs, or its host is off or unreachable: "
    "what it holds runs elsewhere when its lease has lapsed",
    commands=("vbatch status last",),
    advice="on the host that is named: vbatch doctor",
)
ELSEWHERE = Entry(
    id="queue.files_elsewhere",
    means="every request is answered, and the host that submitted the batch is to write the files; it does so at any "
    "vbatch command there, and the answers can be had here",
    commands=("vbatch results {batch} -o answers.jsonl",),
    advice="of a host that is gone for good: take the answers, then vbatch delete --force ID",
)


def _workers(facts: Facts) -> Iterator[Finding]:
    """Report the workers by host, and those without a heartbeat for a while."""
    alive = recovery.alive(facts.records)
    silent = [worker for worker in alive if is_silent(worker)]
    for worker in silent:
        seconds = duration(worker.silent.total_seconds())
        yield WORKERS.warn(f"process {worker.identity.pid} on {_host(worker)} is silent for {seconds}")
    if not alive:
        yield WORKERS.ok("no worker is registered")
    elif not silent:
        hosts = sorted({_host(worker) for worker in alive})
        yield WORKERS.ok(
            f"workers on {', '.join(hosts)}; each has sent its heartbeat",
            *map(_line, sorted(alive, key=_host)),
        )


def _line(worker: Worker) -> str:
    gpus = ", ".join(uuid[:_UUID_SHOWN] for uuid in worker.gpus) or "no GPU"
    return f"{_host(worker)}: process {worker.identity.pid}, {worker.engine}, {gpus}"


def _host(worker: Worker) -> str:
    return worker.identity.host.partition("/")[0]


def _files(facts: Facts) -> Iterator[Finding]:
    """Report the batches that only lack files which another host writes."""
    unfinished = [status for status in BatchStatus if not status.final]
    batches = catalog.recent(facts.records, limit=LOOKED_AT, statuses=unfinished)
    waiting = [(batch, host) for batch in batches if (host := waits_for(facts.records, batch)) is not None]
    for batch, host in waiting[:SHOWN]:
        yield ELSEWHERE.info(f"the files of {batch.id} wait for {host}", values={"batch": batch.id})
    if not waiting:
        yield ELSEWHERE.ok("no batch waits for another host to write its files")


_NEEDS = ("store.reach", "store.state")

CHECKS = (
    Check(name="queue.workers", finds=(WORKERS,), run=_workers, needs=_NEEDS),
    Check(name="queue.files_elsewhere", finds=(ELSEWHERE,), run=_files, needs=_NEEDS),
)
