"""Open the store for the operations on batches: waited for, migrated, ready."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from vbatch.store import (
    COMMAND_PATIENCE,
    NO_PATIENCE,
    READ_PATIENCE,
    WORKER_PATIENCE,
    Store,
    catalog,
    network_file,
)
from vbatch.store.records import Batch


@contextmanager
def open_store(
    url: str, *, reads: bool = False, on_wait: Callable[[str | None, float], None] | None = None
) -> Iterator[Store]:
    """Open the store for one command, migrated and ready.

    ``on_wait`` is called as by ``Store``. Raises StoreUnreachable after about a minute of waiting, or after 10 seconds
    for a command that only ``reads``, StoreMisconfigured at once, also for a file that two hosts would damage.
    """
    store = Store(url, patience=READ_PATIENCE if reads else COMMAND_PATIENCE, on_wait=on_wait)
    try:
        store.prepare()
        if not reads:
            network_file.require_safe(store)
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


@contextmanager
def open_for_requests(url: str) -> Iterator[Store]:
    """Open the store for requests of programs, which a short wait does not harm. The caller prepares it."""
    store = Store(url, patience=READ_PATIENCE)
    try:
        yield store
    finally:
        store.close()


@contextmanager
def as_it_is(url: str) -> Iterator[Store | None]:
    """Open a store for a look: nothing is created, migrated or waited for. None where there is none yet.

    Raises VbatchError where that is not possible.
    """
    store = Store(url, patience=NO_PATIENCE, as_it_is=True)
    try:
        yield None if store.file is not None and not store.file.exists() else store
    finally:
        store.close()


def newest_at_once(url: str, *, limit: int) -> list[Batch]:
    """Return the newest batches of a store as it is. Raises VbatchError where that is not possible."""
    with as_it_is(url) as store:
        return [] if store is None else catalog.recent(store, limit=limit)
