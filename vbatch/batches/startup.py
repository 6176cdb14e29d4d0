"""Open the store for the operations on batches: waited for, migrated, ready."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vbatch.store import COMMAND_PATIENCE, NO_PATIENCE, WORKER_PATIENCE, Store, catalog
from vbatch.store.records import Batch


@contextmanager
def open_store(url: str, *, on_wait: Callable[[str | None, float], None] | None = None) -> Iterator[Store]:
    """Open the store for one command, migrated and ready.

    ``on_wait`` is called as by ``Store``. Raises StoreUnreachable after about a minute of waiting,
    StoreMisconfigured at once.
    """
    store = Store(url, patience=COMMAND_PATIENCE, on_wait=on_wait)
    try:
        store.prepare()
        yield store
    finally:
        store.close()


@contextmanager
def open_for_worker(
    url: str, *, stop: threading.Event, on_wait: Callable[[str | None, float], None]
) -> Iterator[Store]:
    """Open the store for a worker, which prepares it itself and waits for it until ``stop`` is set."""
    store = Store(url, patience=WORKER_PATIENCE, stop=stop, on_wait=on_wait)
    try:
        yield store
    finally:
        store.close()


def newest_at_once(url: str, *, limit: int) -> list[Batch]:
    """Return the newest batches of a store as it is: nothing is created, migrated or waited for.

    Raises VbatchError where that is not possible.
    """
    store = Store(url, patience=NO_PATIENCE, as_it_is=True)
    try:
        if store.file is not None and not store.file.exists():
            return []
        return catalog.recent(store, limit=limit)
    finally:
        store.close()
