"""The batch ids that TAB offers: quick, silent, and without side effects."""

from __future__ import annotations

import re
from collections.abc import Iterator

from vbatch import config
from vbatch.store import NO_PATIENCE, Store, catalog
from vbatch.store.records import Batch

OFFERED = 50  # the newest ones


def batch_ids(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yield ids that begin like this, newest first, each with a few words about it.

    Whatever is wrong (no store yet, a database that is away, a bad configuration) yields nothing: there is no
    good place for words in the middle of somebody's typing.
    """
    try:
        store = Store(config.load().store_url, patience=NO_PATIENCE, as_it_is=True)
        if store.file is not None and not store.file.exists():
            return
        try:
            batches = catalog.recent(store, limit=OFFERED)
        finally:
            store.close()
    except Exception:
        return
    for batch in batches:
        if batch.id.startswith(incomplete):
            yield batch.id, _about(batch)


def _about(batch: Batch) -> str:
    """Describe a batch in words that no shell interprets."""
    words = [
        batch.status.replace("_", " "),
        f"{batch.counts.total} requests",
        batch.name or batch.model or "",
    ]
    return re.sub(r"[^\w .,-]", " ", ", ".join(word for word in words if word))[:80].strip()
