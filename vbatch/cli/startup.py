"""How a command gets its settings and its store, and what it shows while it waits for them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vbatch import batches, config, logs
from vbatch.batches import Batch, Store
from vbatch.cli import quick
from vbatch.cli.output import Output
from vbatch.config import Settings


def settings(output: Output, **flags: Any) -> Settings:
    """Load the settings, and warn about variables that set nothing. Raises ConfigError.

    What a command imports at its beginning is there by now.
    """
    quick.end()
    for sentence in config.misspelt_variables(os.environ):
        output.warn(sentence)
    return config.load(**flags)


@contextmanager
def open_store(output: Output, *, reads: bool = False) -> Iterator[Store]:
    """Open the configured store for one command, migrated and ready; one that only ``reads`` waits 10 seconds at most.

    When the command has done its own work, the files are written that wait for this host. Raises StoreUnreachable after
    about a minute of waiting, StoreMisconfigured at once.
    """
    logs.configure("error")  # a command shows what it waits for itself
    url = settings(output).store_url
    with batches.open_store(url, reads=reads, on_wait=_Waiting(output)) as store:
        yield store
        _write_waiting(output, store)


def _write_waiting(output: Output, store: Store) -> None:
    def refused(batch: Batch, error: OSError) -> None:
        refusal = batches.refusal(batch, error)
        output.warn(f"{refusal.message}; {refusal.hint}")

    for batch in batches.write_waiting(store, refused):
        output.note(f"the files of {batch.id} are written: {batch.output_path}")


class _Waiting:
    """Shows what is waited for: on a terminal all the time, elsewhere in one line for each reason."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._shown: str | None = None

    def __call__(self, reason: str | None, seconds: float) -> None:
        if reason is None:
            self._output.clear()
        elif self._output.stderr.is_terminal or reason != self._shown:
            self._output.transient(f"waiting for the store: {reason} ({seconds:.0f} s)")
        self._shown = reason
