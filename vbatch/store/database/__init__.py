"""The database behind the store: connections, transactions and their retries, the revisions of the schema."""

from __future__ import annotations

from vbatch.store.database.store import (
    COMMAND_PATIENCE,
    NO_PATIENCE,
    READ_PATIENCE,
    WORKER_PATIENCE,
    Patience,
    Store,
)

__all__ = ["COMMAND_PATIENCE", "NO_PATIENCE", "READ_PATIENCE", "WORKER_PATIENCE", "Patience", "Store"]
