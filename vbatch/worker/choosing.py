"""Choose the model to work for."""

from __future__ import annotations

from collections.abc import Sequence

from vbatch.store.records import Waiting


def choose(waiting: Sequence[Waiting], *, loaded: str | None) -> str | None:
    """Choose the model to work for: the best priority first, and among equals the one that is loaded.

    ``waiting`` comes best first. None when there is nothing to do.
    """
    if not waiting:
        return None
    best = [entry.model for entry in waiting if entry.priority == waiting[0].priority]
    return loaded if loaded in best else best[0]
