"""The output and error file of an ended batch of the command line, made of the store: the same bytes every time.

The paths of such a batch are never opened: whoever can write the store could name any file there.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from vbatch import __version__
from vbatch.batches.results import Selection, results
from vbatch.store import Store
from vbatch.store.records import Batch

_MOST = 1000
_sizes: dict[str, int] = {}  # by the tag: a part that is asked for does not cost two passes each time


@dataclass(frozen=True, slots=True, kw_only=True)
class Rendered:
    """One of these files. A pass over it reads the results of the batch, in flat memory."""

    store: Store
    batch: Batch
    errors: bool

    @property
    def filename(self) -> str:
        """The name for a copy."""
        return f"{self.batch.id}_{'errors' if self.errors else 'output'}.jsonl"

    @property
    def ended_at(self) -> datetime:
        """When its content was final."""
        batch = self.batch
        return batch.completed_at or batch.cancelled_at or batch.expired_at or batch.created_at

    @property
    def tag(self) -> str:
        """What stays as long as every byte does: another version of vbatch may write others."""
        return f"{self.filename.partition('.')[0]}-{self.ended_at.timestamp():.6f}-{__version__}"

    def lines(self) -> Iterator[bytes]:
        """Yield the whole file. Raises NoSuchBatch at its end where the batch was deleted meanwhile."""
        return results(self.store, self.batch.id, Selection(errors=self.errors))

    def size(self) -> int:
        """Return how many bytes it has; the first time by a pass over it."""
        if (known := _sizes.get(self.tag)) is None:
            known = sum(map(len, self.lines()))
            if len(_sizes) >= _MOST:
                _sizes.clear()
            _sizes[self.tag] = known
        return known

    def part(self, start: int, end: int) -> Iterator[bytes]:
        """Yield the bytes from ``start`` to before ``end``."""
        at = 0
        for line in self.lines():
            if at + len(line) > start:
                yield line[max(start - at, 0) : end - at]
            at += len(line)
            if at >= end:
                return
