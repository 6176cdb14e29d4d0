"""How a command gets its settings and its store, and what it shows while it waits for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vbatch import batches, config, logs
from vbatch.batches import Store
from vbatch.cli.output import Output
from vbatch.config import Settings


def settings(output: Output, **flags: Any) -> Settings:
    """Load the settings, and warn about variables that set nothing. Raises ConfigError."""
    for sentence in config.misspelt_variables(os.environ):
        output.warn(sentence)
    return config.load(**flags)


@contextmanager
def open_store(output: Output) -> Iterator[Store]:
    """Open the configured store for one command, migrated and ready.

    Raises StoreUnreachable after about a minute of waiting, StoreMisconfigured at once.
    """
    logs.configure("error")  # a command shows what it waits for itself
    url = settings(output).store_url
    with batches.open_store(url, on_wait=lambda reason, seconds: _waiting(output, reason, seconds)) as store:
        yield store


def _waiting(output: Output, reason: str | None, seconds: float) -> None:
    if reason is None:
        output.clear()
    else:
        output.transient(f"waiting for the store: {reason} ({seconds:.0f} s)")
