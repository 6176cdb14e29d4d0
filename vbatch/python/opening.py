"""The configured store, opened for one call: a handle holds no connection, so that it can be kept for a night."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from vbatch import batches, config
from vbatch.batches import Store
from vbatch.config import Settings


@contextmanager
def open_store(*, reads: bool = False) -> Iterator[tuple[Store, Settings]]:
    """Open the store of the settings, migrated and ready; what is waited for is written to stderr, once.

    Raises StoreUnreachable after about a minute, after 10 seconds for a call that only ``reads``; ConfigError.
    """
    settings = config.load()
    shown: set[str | None] = {None}

    def waiting(reason: str | None, _seconds: float) -> None:
        if reason not in shown:
            shown.add(reason)
            sys.stderr.write(f"waiting for the store: {reason}\n")

    with batches.open_store(settings.store_url, reads=reads, on_wait=waiting) as store:
        yield store, settings
