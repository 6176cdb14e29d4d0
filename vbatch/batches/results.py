"""Read or save the finished lines of a batch at any time: always whole lines, in file order.

The lines are those of the output and error files: always the same bytes for the same results.
"""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby, repeat
from operator import itemgetter
from pathlib import Path
from typing import TypeVar

from vbatch.answers import CUT_OFF
from vbatch.batches.find import with_retries
from vbatch.batches.paths import check_copy
from vbatch.errors import NoSuchRequest, OutputPathError
from vbatch.protocol import answer_line, no_answer_line, one_line_json
from vbatch.store import Store, catalog
from vbatch.store.records import Answer, Batch, Outcome
from vbatch.store.results import finished, one
from vbatch.system.files import atomic_file

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SavedResults:
    """A copy of finished lines: where it is, and how many lines it has."""

    path: Path
    lines: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Which finished lines: answers, or ``errors``; only the ``cut_off`` answers; so many chosen at random.

    ``retries``: of each request the best answer that it or a retry of it got.
    """

    errors: bool = False
    cut_off: bool = False
    sample: int | None = None
    retries: bool = False


ANSWERS = Selection()


def results(store: Store, reference: str, selection: Selection = ANSWERS) -> Iterator[bytes]:
    """Return the lines of the output file, or of the error file, as far as they are known now.

    A sample keeps the order of the file. Raises NoSuchBatch, AmbiguousBatch; the iterator raises NoSuchBatch at its end
    where the batch was deleted meanwhile, for then some lines are missing.
    """
    return _selected(store, catalog.find(store, reference), selection)


def save_results(store: Store, reference: str, path: Path, selection: Selection = ANSWERS) -> SavedResults:
    """Write these lines to a file, whole or not at all. Raises OutputPathError too."""
    batch = catalog.find(store, reference)
    chosen = check_copy(store, path, batch_id=batch.id)
    written = 0
    try:
        with atomic_file(chosen, tag=batch.id) as file:
            for line in _selected(store, batch, selection):
                file.write(line)
                written += 1
                del line  # before the next one is read: it may be large
    except BlockingIOError:
        raise OutputPathError(f"another process is writing {chosen}", hint="-o another path") from None
    return SavedResults(path=file.path, lines=written)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One request: its place in the input, its body, and its line of the output or error file once it is finished."""

    batch: Batch
    custom_id: str
    line: int
    request: bytes
    result: bytes | None


def show(store: Store, reference: str, custom_id: str) -> Shown:
    """Return one request and what became of it. Raises NoSuchBatch, AmbiguousBatch, NoSuchRequest."""
    batch = catalog.find(store, reference)
    found = one(store, pk=batch.pk, custom_id=custom_id)
    if found is None:
        raise NoSuchRequest(
            f"{batch.id} has no request with the custom_id {custom_id!r}",
            hint=f"vbatch results {batch.id} --sample 5",
        )
    answer, body = found
    return Shown(
        batch=batch,
        custom_id=answer.custom_id,
        line=answer.line,
        request=body,
        result=output_line(batch.id, answer) if answer.outcome is not None else None,
    )


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


def _selected(store: Store, batch: Batch, selection: Selection) -> Iterator[bytes]:
    lines = _lines(store, batch, selection)
    return lines if selection.sample is None else iter(sampled(lines, selection.sample))


def sampled(found: Iterator[T], size: int) -> list[T]:
    """Return so many of them in their order, each with the same chance (reservoir sampling, Vitter's algorithm R)."""
    kept: list[tuple[int, T]] = []
    for position, one_of_them in enumerate(found):
        if position < size:
            kept.append((position, one_of_them))
        elif (place := random.randrange(position + 1)) < size:
            kept[place] = (position, one_of_them)
    return [each for _, each in sorted(kept, key=itemgetter(0))]


def _lines(store: Store, batch: Batch, selection: Selection) -> Iterator[bytes]:
    def read(pk: int) -> Iterator[Answer]:
        return finished(store, pk=pk)

    for owner, answer in of_family(store, batch, read, _itself, retries=selection.retries):
        if succeeded(answer) is not selection.errors and (was_cut_off(answer) or not selection.cut_off):
            yield output_line(owner.id, answer)
        del answer


def was_cut_off(answer: Answer) -> bool:
    """Return whether an answer ended at the limit of tokens."""
    return answer.outcome is not None and answer.outcome.finish == CUT_OFF


def of_family(
    store: Store,
    batch: Batch,
    read: Callable[[int], Iterator[T]],
    answer_of: Callable[[T], Answer],
    *,
    retries: bool,
) -> Iterator[tuple[Batch, T]]:
    """Yield what ``read`` yields of a batch in file order, each with the batch that its answer is of.

    With ``retries``, of each request the best that it or a retry of it got.
    """
    if not retries:
        for found in read(batch.pk):
            yield batch, found
            del found
        return

    def line(pair: tuple[Batch, T]) -> int:
        return answer_of(pair[1]).line

    def worth(pair: tuple[Batch, T]) -> tuple[bool, bool, int]:
        # the newest that is whole, else the newest that is an answer, else the newest
        answer = answer_of(pair[1])
        good = succeeded(answer)
        return good and not was_cut_off(answer), good, pair[0].pk

    family = with_retries(store, batch)
    runs = [zip(repeat(each), read(each.pk)) for each in family]  # one side never ends
    for _, pairs in groupby(heapq.merge(*runs, key=line), key=line):
        yield max(pairs, key=worth)


def _itself(answer: Answer) -> Answer:
    return answer
