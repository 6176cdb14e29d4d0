"""What the store must know of this worker: its row, and the heartbeat that it has reached.

A store that does not know them is another one, or an older state of the same: a backup that was restored.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

from vbatch.errors import StoreReplaced
from vbatch.store import Store, network_file, registry
from vbatch.system import processes
from vbatch.worker.progress import Snapshot


class Registration:
    """This worker in one store. ``replaced`` is set where a heartbeat has met another store.

    Raises StoreMisconfigured for a SQLite file on a network file system that another host works with.
    """

    def __init__(self, store: Store, *, engine: str, gpus: Sequence[str]) -> None:
        self._store = store
        network_file.require_safe(store)
        self.worker = registry.register(store, identity=processes.current(), engine=engine, gpus=gpus)
        self.heartbeat = 0
        self._lock = threading.Lock()
        self.replaced: StoreReplaced | None = None

    def report(self, now: Snapshot) -> None:
        """Raise the heartbeat, with what the worker does now."""
        pace = now.requests_per_second if now.state == "working" else None
        self.beat(models=now.names, note=now.note, requests_per_second=pace)

    def beat(
        self, *, models: Sequence[str], note: str | None, requests_per_second: float | None = None
    ) -> None:
        """Raise the heartbeat. Where the store is another one, that is kept for ``require``."""
        try:
            beaten = registry.heartbeat(
                self._store,
                worker=self.worker,
                models=models,
                note=note,
                requests_per_second=requests_per_second,
                known=self.heartbeat,
            )
        except StoreReplaced as error:
            self.replaced = error
        else:
            self.reached(beaten)

    def reached(self, heartbeat: int) -> None:
        """Take note of what the store has counted. Called by several threads; it only rises."""
        with self._lock:
            self.heartbeat = max(heartbeat, self.heartbeat)

    def require(self) -> None:
        """Raise StoreReplaced where a heartbeat has met another store."""
        if self.replaced is not None:
            raise self.replaced
