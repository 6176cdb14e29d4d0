"""Everything that can be done with batches: submit, find, follow, read, cancel, retry, delete, write their files.

Each operation takes a Store and a reference (an id, or a part of one), returns a frozen result and prints nothing.
This package is the only way to batches for the command line.
"""

from __future__ import annotations

from vbatch.batches.documents import batch_object
from vbatch.batches.finalize import cancel, delete, finalize
from vbatch.batches.find import BatchList, find, list_batches
from vbatch.batches.input_file import InputFile
from vbatch.batches.results import SavedResults, results, save_results
from vbatch.batches.retry import retry
from vbatch.batches.startup import newest_at_once, open_for_worker, open_store
from vbatch.batches.status import Status, failure_message, status, watch
from vbatch.batches.submit import (
    Checked,
    InvalidInput,
    SubmitOptions,
    Submitted,
    check,
    name_batch_in_errors,
    submit,
)
from vbatch.batches.workers import AtWork, LeftAlone, at_work, left_alone
from vbatch.store import Store
from vbatch.store.failures import FailureGroup
from vbatch.store.records import Batch, RequestCounts, Worker

__all__ = [
    "AtWork",
    "Batch",
    "BatchList",
    "Checked",
    "FailureGroup",
    "InputFile",
    "InvalidInput",
    "LeftAlone",
    "RequestCounts",
    "SavedResults",
    "Status",
    "Store",
    "SubmitOptions",
    "Submitted",
    "Worker",
    "at_work",
    "batch_object",
    "cancel",
    "check",
    "delete",
    "failure_message",
    "finalize",
    "find",
    "left_alone",
    "list_batches",
    "name_batch_in_errors",
    "newest_at_once",
    "open_for_worker",
    "open_store",
    "results",
    "retry",
    "save_results",
    "status",
    "submit",
    "watch",
]
