"""Who is at work, in words: workers by host and GPU, which of them are silent, what is missing, what waits where."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

from vbatch import batches
from vbatch.batches import AtWork, Batch, Worker
from vbatch.pausing import Pause
from vbatch.text import count, duration, one_line

UUID_SHOWN = len("GPU-8f3c21aa")  # of a GPU, as nvidia-smi -L lists them


def missing_worker(at_work: AtWork) -> str | None:
    """Return what is missing for a batch to run, and the command that starts it; None where nothing is."""
    if at_work.paused is not None:
        return paused(at_work.paused)
    if not at_work.workers:
        return f"no worker is running; start one with: {at_work.command}"
    if at_work.unserved:
        return f"no running worker serves {_models(at_work.unserved)}; start one with: {at_work.command}"
    return None


def paused(pause: Pause) -> str:
    """Return that the workers of this account rest on this host, and what ends that."""
    return f"workers are {pause.words}; to continue: {pause.remedy}"


def workers(batch: Batch, at_work: AtWork) -> str:
    """Return the workers that are alive, each with its model and what it waits for."""
    if at_work.files_wait_for is not None:
        return f"none is needed; {batches.explained(batch, at_work.files_wait_for)}"
    if at_work.without_server:
        return "none is needed; the batch waits for the server: vbatch serve"
    if not at_work.workers and at_work.paused is not None:
        return f"none is running; {paused(at_work.paused)}"
    if not at_work.workers:
        return f"none is running; start one with: {at_work.command}"
    parts = [_worker(worker) for worker in at_work.workers]
    if at_work.unserved:
        parts.append(f"none serves {_models(at_work.unserved)}; start one with: {at_work.command}")
    if at_work.paused is not None:
        parts.append(paused(at_work.paused))
    return "; ".join(parts)


def silence(worker: Worker) -> str:
    """Return for how long a worker has sent no heartbeat."""
    return f"silent for {duration(worker.silent.total_seconds())}: it hangs, or its host is unreachable"


def by_host(workers: Sequence[Worker]) -> str | None:
    """Return the workers of each host with their GPUs; None where all are on one host and none is silent."""
    silent = [worker for worker in workers if batches.is_silent(worker)]
    if not silent and len({worker.identity.host for worker in workers}) < 2:
        return None
    parts = []
    for host, of_host in groupby(sorted(workers, key=_host), key=_host):
        found = list(of_host)
        gpus = [uuid[:UUID_SHOWN] for worker in found for uuid in worker.gpus]
        parts.append(f"{len(found)} on {host}" + (f" ({', '.join(gpus)})" if gpus else ""))
    line = f"workers: {', '.join(parts)}"
    for worker in silent:
        line += f"; process {worker.identity.pid} on {_host(worker)} is {silence(worker)}"
    return line


def _host(worker: Worker) -> str:
    return worker.identity.host.partition("/")[0]


def _models(models: Sequence[str]) -> str:
    first = one_line(models[0], limit=60)
    return first if len(models) == 1 else f"{first} and {count(len(models) - 1, 'other model')}"


def _worker(worker: Worker) -> str:
    line = f"process {worker.identity.pid} on {_host(worker)}"
    if worker.model is not None:
        line += f", {one_line(worker.model, limit=60)}"
    for uuid in worker.gpus:
        line += f", {uuid[:UUID_SHOWN]}"
    if worker.note is not None:
        line += f": {one_line(worker.note, limit=200)}"
    return f"{line}; {silence(worker)}" if batches.is_silent(worker) else line
