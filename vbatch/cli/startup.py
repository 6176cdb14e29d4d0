"""How a command gets its settings and its store, and what it says while it waits for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vbatch import config, logs
from vbatch.cli.output import Output
from vbatch.config import Settings
from vbatch.store import COMMAND_PATIENCE, Store


def settings(output: Output, **flags: Any) -> Settings:
    """Load the settings, and warn about variables that set nothing. Raises ConfigError."""
    for sentence in config.misspelt_variables(os.environ):
        output.warn(sentence)
    return config.load(**flags)


@contextmanager
def open_store(output: Output, *, prepare: bool = True) -> Iterator[Store]:
    """Open the configured store for one command, migrated and ready; else it is not even touched.

    Raises StoreUnreachable after about a minute of waiting, StoreMisconfigured at once.
    """
    logs.configure("error")  # what a command waits for, it says itself
    store = Store(
        settings(output).store_url,
        patience=COMMAND_PATIENCE,
        on_wait=lambda reason, seconds: _tell(output, reason, seconds),
    )
    try:
        if prepare:
            store.prepare()
        yield store
    finally:
        store.close()


def _tell(output: Output, reason: str | None, seconds: float) -> None:
    if reason is None:
        output.clear()
    else:
        output.transient(f"waiting for the store: {reason} ({seconds:.0f} s)")
