"""What can be done with batches: submit, list, follow, read, cancel, retry, delete, write their files.

Each operation takes a Store, returns a frozen result and prints nothing.
"""

from __future__ import annotations

from vbatch.batches.cancelling import cancel
from vbatch.batches.finalize import finalize
from vbatch.batches.paths import check_copy
from vbatch.batches.results import results
from vbatch.batches.retry import retry
from vbatch.batches.status import Status, batch_object, status
from vbatch.batches.submit import InvalidInput, Order, Submitted, submit, told

__all__ = [
    "InvalidInput",
    "Order",
    "Status",
    "Submitted",
    "batch_object",
    "cancel",
    "check_copy",
    "finalize",
    "results",
    "retry",
    "status",
    "submit",
    "told",
]
