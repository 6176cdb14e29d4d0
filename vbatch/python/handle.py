"""A batch as a program holds it: its id, and what can be done with it. The store is asked again at each call."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vbatch import batches
from vbatch.batches import Record, RequestCounts, RetryOptions, Selection
from vbatch.errors import ConfigError, UsageError, WrongStatus
from vbatch.protocol import BatchStatus
from vbatch.python.opening import open_store
from vbatch.python.progress import Progress, WaitTimeout
from vbatch.tabular.record import NAMES, NUMBERS

if TYPE_CHECKING:
    import pandas

BLOCKED_LIMIT = timedelta(minutes=10)


class Batch:
    """A batch in the store. Two handles of the same batch are equal."""

    __slots__ = ("id",)

    def __init__(self, batch_id: str) -> None:
        self.id = batch_id

    def __repr__(self) -> str:
        return f"vbatch.batch({self.id!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Batch) and other.id == self.id

    def __hash__(self) -> int:
        return hash(self.id)

    @property
    def info(self) -> batches.Batch:
        """Everything that the store knows of the batch now: a frozen value."""
        with open_store(reads=True) as (store, _):
            return batches.find(store, self.id)

    @property
    def status(self) -> BatchStatus:
        """The status now: ``in_progress``, ``completed``, … A text that can be compared with ``==``."""
        return self.info.status

    @property
    def counts(self) -> RequestCounts:
        """How many requests there are, and how many are completed and failed now."""
        return self.info.counts

    def wait(
        self,
        *,
        timeout: timedelta | float | None = None,
        blocked_limit: timedelta | float | None = BLOCKED_LIMIT,
        progress: bool = True,
    ) -> Batch:
        """Wait until the batch has ended, and return it. Failed requests are no error: see ``counts``.

        Times in seconds, or as timedelta. Raises WaitTimeout after ``timeout``, OnlyBlocked after ``blocked_limit``
        with nothing left but requests whose model cannot be loaded, FilesElsewhere where it is nothing but files that
        another host is to write. Ctrl-C ends the waiting alone.
        """
        began = time.monotonic()
        blocked_since: float | None = None
        with open_store() as (store, _), Progress(wanted=progress) as shown:
            for status in batches.watch(store, self.id):
                shown.show(status)
                if status.batch.status.final:
                    return self
                now = time.monotonic()
                host = status.at_work.files_wait_for if status.at_work is not None else None
                entirely = status.at_work is not None and status.at_work.blocked.entirely
                blocked_since = (blocked_since or now) if entirely or host else None
                if blocked_since is not None and _past(now - blocked_since, blocked_limit):
                    raise (
                        batches.files_elsewhere(status.batch, host) if host else batches.only_blocked(status)
                    )
                if _past(now - began, timeout):
                    raise WaitTimeout(f"{self.id} has not ended; it continues", hint="batch.wait()")
        return self

    def texts(self, *, retries: bool = False) -> list[str | None]:
        """Return the text of each answer, one per request in the order of the input; None for a failed request.

        With ``retries``, the best answer that a request or a retry of it got. Raises WrongStatus before the end.
        """
        batch = self.info
        if not batch.status.final:
            raise WrongStatus(f"{self.id} has not ended: {batch.status}", hint="batch.wait().texts()")
        return [record.answer for record in self.results(retries=retries)]

    def results(self, *, errors: bool = False, retries: bool = False) -> Iterator[Record]:
        """Yield what is finished, at any time, as flat records in the order of the input.

        Answers and failures; with ``errors`` the failures alone. Memory is flat.
        """
        with open_store(reads=True) as (store, _):
            yield from batches.records(store, self.id, Selection(errors=errors, retries=retries))

    def to_pandas(self, *, retries: bool = False) -> pandas.DataFrame:
        """Return what is finished as a DataFrame, a row per request. Raises ConfigError without pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise ConfigError("pandas is not installed", hint="pip install 'vbatch[pandas]'") from None
        rows = [tuple(asdict(record).values()) for record in self.results(retries=retries)]
        table = pd.DataFrame.from_records(rows, columns=list(NAMES))
        return table.astype(dict.fromkeys(NUMBERS, "Int64"))  # whole numbers, of which some are missing

    def retry(
        self,
        *,
        model: str | None = None,
        only: str | None = None,
        cut_off: bool = False,
        changes: Mapping[str, Any] | None = None,
        output: str | Path | None = None,
    ) -> Batch:
        """Submit the failed requests, or with ``cut_off`` the answers that were cut off, as a new batch.

        ``only`` is a code of failure (``http_500``), ``changes`` are fields of the bodies (``{"max_tokens": 4096}``).
        Raises WrongStatus where there are none, or the batch has not ended.
        """
        if not isinstance(changes, Mapping | None):
            raise UsageError(f"changes is of the type {type(changes).__name__}, not a dictionary")
        options = RetryOptions(
            model=model,
            only=only,
            cut_off=cut_off,
            changes=dict(changes or {}),
            output=None if output is None else Path(output),
        )
        with open_store() as (store, _):
            return Batch(batches.retry(store, self.id, options).id)

    def cancel(self) -> Batch:
        """Start no further request; what is finished stays. Raises WrongStatus where the batch has ended."""
        with open_store() as (store, _):
            batches.cancel(store, self.id)
        return self


def batch(reference: str) -> Batch:
    """Return a batch by its id, a part of one, its name, or ``last``. Raises NoSuchBatch, AmbiguousBatch."""
    if not isinstance(reference, str):
        raise UsageError(f"a batch is named by a text, not by what is of the type {type(reference).__name__}")
    with open_store(reads=True) as (store, _):
        return Batch(batches.find(store, reference).id)


def list_batches(*, limit: int = 20, status: str | None = None, name: str | None = None) -> list[Batch]:
    """Return the newest batches, the newest first; of a ``status``, or of exactly this ``name``."""
    with open_store(reads=True) as (store, _):
        found = batches.list_batches(store, limit=limit, status=status, name=name)
    return [Batch(each.id) for each in found.batches]


def _past(seconds: float, limit: timedelta | float | None) -> bool:
    if limit is None:
        return False
    return seconds >= (limit.total_seconds() if isinstance(limit, timedelta) else limit)
