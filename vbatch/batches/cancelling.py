"""Cancel a batch: nothing of it starts any more, what is finished stays."""

from __future__ import annotations

from vbatch.batches.finalize import finalize_here
from vbatch.store import Store, endings
from vbatch.store.records import Batch


def cancel(store: Store, batch: Batch) -> Batch:
    """Cancel a batch. Where no worker lives that would write its files, they are written here.

    Raises WrongStatus when it has ended already, OSError when its files cannot be written.
    """
    return finalize_here(store, endings.request_cancel(store, pk=batch.pk))
