"""The job store: batches, their requests and results, the lease, and the workers, in SQLite or PostgreSQL.

``Store`` is the open database (``vbatch.store.database``); the modules beside it are what can be done with it. No
session, connection or row ever leaves this package.
"""

from __future__ import annotations

from vbatch.store.database import (
    COMMAND_PATIENCE,
    NO_PATIENCE,
    READ_PATIENCE,
    WORKER_PATIENCE,
    Patience,
    Store,
)

__all__ = ["COMMAND_PATIENCE", "NO_PATIENCE", "READ_PATIENCE", "WORKER_PATIENCE", "Patience", "Store"]
