"""Read the finished lines of a batch at any time: always whole lines, in file order."""

from __future__ import annotations

from collections.abc import Iterator

from vbatch.batches.lines import output_line, succeeded
from vbatch.store import Store, answers
from vbatch.store.records import Batch


def results(store: Store, batch: Batch, *, errors: bool = False) -> Iterator[bytes]:
    """Yield the lines of the output file, or of the error file, as far as they are known now."""
    for answer in answers.finished(store, pk=batch.pk):
        if succeeded(answer) is not errors:
            yield output_line(batch.id, answer)
