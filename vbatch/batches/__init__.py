"""Everything that can be done with batches: submit, find, follow, read, cancel, retry, delete, write their files.

Each operation takes a Store and a reference (an id, or a part of one), returns a frozen result and prints nothing.
This package is the only way to batches for the command line and the server.

Nothing is imported before it is asked for: ``vbatch list`` needs a tenth of it.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vbatch.batches.content import ForeignFile as ForeignFile
    from vbatch.batches.content import InvalidInput as InvalidInput
    from vbatch.batches.create import waiting as waiting
    from vbatch.batches.documents import batch_object as batch_object
    from vbatch.batches.estimate import Estimate as Estimate
    from vbatch.batches.estimate import ModelEstimate as ModelEstimate
    from vbatch.batches.estimate import estimate as estimate
    from vbatch.batches.finalize import cancel as cancel
    from vbatch.batches.finalize import delete as delete
    from vbatch.batches.finalize import delete_ended as delete_ended
    from vbatch.batches.finalize import finalize as finalize
    from vbatch.batches.finalize import registered as registered
    from vbatch.batches.finalize import request_cancel as request_cancel
    from vbatch.batches.find import BLOCKED as BLOCKED
    from vbatch.batches.find import EVERY as EVERY
    from vbatch.batches.find import QUEUED as QUEUED
    from vbatch.batches.find import RETRY_OF as RETRY_OF
    from vbatch.batches.find import STATUSES as STATUSES
    from vbatch.batches.find import BatchList as BatchList
    from vbatch.batches.find import find as find
    from vbatch.batches.find import list_batches as list_batches
    from vbatch.batches.find import page as page
    from vbatch.batches.find import status_word as status_word
    from vbatch.batches.input_file import InputFile as InputFile
    from vbatch.batches.make import MakeOptions as MakeOptions
    from vbatch.batches.make import make as make
    from vbatch.batches.notify import check_target as check_target
    from vbatch.batches.notify import deliver_for_workers as deliver_for_workers
    from vbatch.batches.notify import notify_at_once as notify_at_once
    from vbatch.batches.records import records as records
    from vbatch.batches.results import SavedResults as SavedResults
    from vbatch.batches.results import Selection as Selection
    from vbatch.batches.results import Shown as Shown
    from vbatch.batches.results import results as results
    from vbatch.batches.results import save_results as save_results
    from vbatch.batches.results import show as show
    from vbatch.batches.retry import RetryOptions as RetryOptions
    from vbatch.batches.retry import retry as retry
    from vbatch.batches.serving import KnownModel as KnownModel
    from vbatch.batches.serving import known_models as known_models
    from vbatch.batches.serving import live_workers as live_workers
    from vbatch.batches.serving import queue_progress as queue_progress
    from vbatch.batches.startup import newest_at_once as newest_at_once
    from vbatch.batches.startup import open_for_requests as open_for_requests
    from vbatch.batches.startup import open_for_worker as open_for_worker
    from vbatch.batches.startup import open_store as open_store
    from vbatch.batches.status import Status as Status
    from vbatch.batches.status import only_blocked as only_blocked
    from vbatch.batches.status import status as status
    from vbatch.batches.status import watch as watch
    from vbatch.batches.submit import Checked as Checked
    from vbatch.batches.submit import SubmitOptions as SubmitOptions
    from vbatch.batches.submit import Submitted as Submitted
    from vbatch.batches.submit import check as check
    from vbatch.batches.submit import check_together as check_together
    from vbatch.batches.submit import name_batch_in_errors as name_batch_in_errors
    from vbatch.batches.submit import submit as submit
    from vbatch.batches.tables import TableFormat as TableFormat
    from vbatch.batches.tables import TableOptions as TableOptions
    from vbatch.batches.tables import WrittenTable as WrittenTable
    from vbatch.batches.tables import save_table as save_table
    from vbatch.batches.tables import write_table as write_table
    from vbatch.batches.workers import AtWork as AtWork
    from vbatch.batches.workers import Block as Block
    from vbatch.batches.workers import Blocks as Blocks
    from vbatch.batches.workers import LeftAlone as LeftAlone
    from vbatch.batches.workers import at_work as at_work
    from vbatch.batches.workers import blocks as blocks
    from vbatch.batches.workers import is_silent as is_silent
    from vbatch.batches.workers import left_alone as left_alone
    from vbatch.batches.workers import missing_models as missing_models
    from vbatch.batches.workers import not_here as not_here
    from vbatch.batches.writing import explained as explained
    from vbatch.batches.writing import files_elsewhere as files_elsewhere
    from vbatch.batches.writing import refusal as refusal
    from vbatch.batches.writing import waits_for as waits_for
    from vbatch.batches.writing import write_waiting as write_waiting
    from vbatch.store import Store as Store
    from vbatch.store.failures import FailureGroup as FailureGroup
    from vbatch.store.files import StoredFile as StoredFile
    from vbatch.store.records import Batch as Batch
    from vbatch.store.records import RequestCounts as RequestCounts
    from vbatch.store.records import Worker as Worker
    from vbatch.tabular.read import Format as Format
    from vbatch.tabular.record import Record as Record
    from vbatch.tabular.record import RecordStatus as RecordStatus

# The same names again, as the program needs them (a test compares): where each is defined.
_HOMES = {
    "vbatch.batches.content": "ForeignFile InvalidInput",
    "vbatch.batches.create": "waiting",
    "vbatch.batches.documents": "batch_object",
    "vbatch.batches.estimate": "Estimate ModelEstimate estimate",
    "vbatch.batches.finalize": "cancel delete delete_ended finalize registered request_cancel",
    "vbatch.batches.find": (
        "BLOCKED EVERY QUEUED RETRY_OF STATUSES BatchList find list_batches page status_word"
    ),
    "vbatch.batches.input_file": "InputFile",
    "vbatch.batches.make": "MakeOptions make",
    "vbatch.batches.notify": "check_target deliver_for_workers notify_at_once",
    "vbatch.batches.records": "records",
    "vbatch.batches.results": "SavedResults Selection Shown results save_results show",
    "vbatch.batches.retry": "RetryOptions retry",
    "vbatch.batches.serving": "KnownModel known_models live_workers queue_progress",
    "vbatch.batches.startup": "newest_at_once open_for_requests open_for_worker open_store",
    "vbatch.batches.status": "Status only_blocked status watch",
    "vbatch.batches.submit": (
        "Checked SubmitOptions Submitted check check_together name_batch_in_errors submit"
    ),
    "vbatch.batches.tables": "TableFormat TableOptions WrittenTable save_table write_table",
    "vbatch.batches.workers": (
        "AtWork Block Blocks LeftAlone at_work blocks is_silent left_alone missing_models not_here"
    ),
    "vbatch.batches.writing": "explained files_elsewhere refusal waits_for write_waiting",
    "vbatch.store": "Store",
    "vbatch.store.failures": "FailureGroup",
    "vbatch.store.files": "StoredFile",
    "vbatch.store.records": "Batch RequestCounts Worker",
    "vbatch.tabular.read": "Format",
    "vbatch.tabular.record": "Record RecordStatus",
}
_HOME_OF = {name: home for home, names in _HOMES.items() for name in names.split()}


if not TYPE_CHECKING:  # a checker of types knows the names from above, and no others

    def __getattr__(name: str) -> object:
        if name not in _HOME_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        found = getattr(import_module(_HOME_OF[name]), name)
        globals()[name] = found  # the next time it is there
        return found

    class _Operations(ModuleType):
        """A module in which ``results``, ``retry`` … are the operations, not the modules of the same name."""

        def __setattr__(self, name: str, value: object) -> None:
            # The import system sets each submodule that it has loaded.
            if isinstance(value, ModuleType) and name in _HOME_OF:
                value = getattr(value, name)
            super().__setattr__(name, value)

    sys.modules[__name__].__class__ = _Operations


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME_OF})
