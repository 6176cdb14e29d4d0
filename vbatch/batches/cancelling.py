"""Cancel a batch: nothing of it starts any more, what is finished stays."""

from __future__ import annotations

from vbatch import processes
from vbatch.batches.finalizing import finalize
from vbatch.processes import Liveness
from vbatch.store import Store, catalog, registry
from vbatch.store.records import Batch


def cancel(store: Store, batch: Batch, *, by: str) -> Batch:
    """Cancel a batch. Where no worker lives that would write its files, they are written here.

    Raises WrongStatus when it has ended already, OSError when its files cannot be written.
    """
    cancelled = catalog.request_cancel(store, pk=batch.pk)
    if any(processes.liveness(worker.identity) is not Liveness.GONE for worker in registry.live(store)):
        return cancelled
    return finalize(store, cancelled, by=by) or catalog.by_pk(store, pk=batch.pk)
