"""Who works on the queue: what a person looks at when nothing moves."""

from __future__ import annotations

from collections.abc import Sequence

from vbatch import processes
from vbatch.store import Store, registry
from vbatch.store.records import Worker
from vbatch.text import one_line


def at_work(store: Store) -> list[Worker]:
    """Return the workers that live, as far as that can be known from here."""
    return [worker for worker in registry.live(store) if not processes.is_gone(worker.identity)]


def in_words(workers: Sequence[Worker]) -> str:
    """Say who works, and what is the matter with it."""
    if not workers:
        return "none is running; start one with: vbatch run-worker"
    return "; ".join(_in_words(worker) for worker in workers)


def _in_words(worker: Worker) -> str:
    words = f"process {worker.identity.pid} on {worker.identity.host}"
    if worker.model is not None:
        words += f", {one_line(worker.model, limit=60)}"
    if worker.note is not None:
        words += f": {one_line(worker.note, limit=200)}"
    return words
