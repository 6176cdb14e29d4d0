"""Recover from dead workers: return their chunks to the queue, and end the engine processes that they left behind."""

from __future__ import annotations

from vbatch.store import Store, registry
from vbatch.store.records import Worker
from vbatch.system import processes


def alive(store: Store) -> list[Worker]:
    """Return the workers that are alive, as far as that can be known from here: none that is provably gone."""
    return [worker for worker in registry.live(store) if not processes.is_gone(worker.identity)]


def dead(store: Store) -> list[Worker]:
    """Return the workers that crashed: they did not stop cleanly, and their processes are provably gone."""
    return [worker for worker in registry.live(store) if processes.is_gone(worker.identity)]
