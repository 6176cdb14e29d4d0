"""Read or save the finished lines of a batch at any time: always whole lines, in file order.

The lines are those of the output and error files: always the same bytes for the same results.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vbatch.batches.paths import check_copy
from vbatch.protocol import answer_line, no_answer_line, one_line_json
from vbatch.store import Store, catalog
from vbatch.store.records import Answer, Batch, Outcome
from vbatch.store.results import finished
from vbatch.system.files import atomic_file


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedResults:
    """A copy of finished lines: where it is, and how many lines it has."""

    path: Path
    lines: int


def results(store: Store, reference: str, *, errors: bool = False) -> Iterator[bytes]:
    """Return the lines of the output file, or of the error file, as far as they are known now.

    Raises NoSuchBatch, AmbiguousBatch; the iterator raises NoSuchBatch at its end where the batch was deleted
    meanwhile, for then some lines are missing.
    """
    return _lines(store, catalog.find(store, reference), errors=errors)


def save_results(store: Store, reference: str, path: Path, *, errors: bool = False) -> SavedResults:
    """Write these lines to a file, whole or not at all. Raises OutputPathError too."""
    batch = catalog.find(store, reference)
    chosen = check_copy(store, path, batch_id=batch.id)
    written = 0
    with atomic_file(chosen, tag=batch.id) as file:
        for line in _lines(store, batch, errors=errors):
            file.write(line)
            written += 1
    return SavedResults(path=file.path, lines=written)


def output_line(batch_id: str, answer: Answer) -> bytes:
    """Return the line of one finished request, newline included."""
    line_id = f"batch_req_{batch_id.removeprefix('batch_')}_{answer.line}"
    outcome = answer.outcome or Outcome()
    if outcome.status_code is None or outcome.body is None:
        return no_answer_line(
            line_id=line_id,
            custom_id=answer.custom_id,
            code=outcome.error_code or "unknown",
            message=outcome.error_message or "",
        )
    return answer_line(
        line_id=line_id,
        custom_id=answer.custom_id,
        status_code=outcome.status_code,
        request_id=outcome.request_id or line_id,
        body=one_line_json(outcome.body),
    )


def succeeded(answer: Answer) -> bool:
    """Return whether a finished request belongs into the output file."""
    return answer.outcome is not None and answer.outcome.succeeded


def _lines(store: Store, batch: Batch, *, errors: bool) -> Iterator[bytes]:
    for answer in finished(store, pk=batch.pk):
        if succeeded(answer) is not errors:
            yield output_line(batch.id, answer)
