"""Read what became of the requests of a batch, in file order, in short transactions at any time.

How they are brought into the order of the file stands in ``file_order``.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from sqlalchemy import Connection, literal_column, select

from vbatch.store import file_order
from vbatch.store.catalog import still_there
from vbatch.store.database import Store
from vbatch.store.database.backends.protocol import READS_BODIES
from vbatch.store.file_order import ANSWER
from vbatch.store.ranges import MODEL_SHIFT
from vbatch.store.records import SUBMITTED_AGAIN, Answer, ChunkState, Outcome, Span
from vbatch.store.tables import CHUNK, REQUEST, REQUEST_WITH_RESULT, RESULT


class FailedRequest(NamedTuple):
    """A request that is worth submitting again. ``line`` is its place in the original file.

    ``code`` is how it failed: an error's code, or ``http_…``; None where it was cut off, or has not run.
    """

    line: int
    custom_id: str
    model: str
    url: str
    body: bytes
    code: str | None


class _Stopped(NamedTuple):
    first: int
    last: int
    code: str
    message: str


def in_file_order(store: Store, *, pk: int) -> Iterator[Answer]:
    """Yield every request of the batch with its result, or with the reason why it will never have one.

    Raises NoSuchBatch at the end where the batch was deleted meanwhile, for then some were missing.
    """
    stopped = store.read(lambda connection: stopped_chunks(connection, pk))
    for row, (body,) in file_order.read(store, pk, file_order.ANSWERS):
        yield to_answer(row, body, stopped)
        del body  # before the next page is read: it may be large
    store.read(lambda connection: still_there(connection, pk))


def finished(store: Store, *, pk: int) -> Iterator[Answer]:
    """Yield the requests that are finished: the same lines as at the end, as far as they are known."""
    for answer in in_file_order(store, pk=pk):
        if answer.outcome is not None:
            yield answer
        del answer  # as above


def failed_requests(store: Store, *, pk: int, waiting: Sequence[Span] = ()) -> Iterator[FailedRequest]:
    """Yield, in file order, the requests that ended without a 2xx answer, bodies included.

    Those that wait in the ``waiting`` spans are among them; those that were submitted again already are not.
    """
    models, stopped = store.read(
        lambda connection: (models_of(connection, pk), stopped_chunks(connection, pk))
    )
    for row, (body,) in file_order.read(store, pk, file_order.FAILED_REQUESTS):
        if body is None:
            continue
        if row.epoch is not None:
            code = row.error_code or (f"http_{row.status_code}" if row.status_code else None)
        elif (chunk := _stopped_with(stopped, row.seq)) is not None:
            code = chunk.code
        elif any(span.first <= row.seq <= span.last for span in waiting):
            code = None
        else:
            continue
        if code != SUBMITTED_AGAIN:
            yield _failed(row, models, body, code)
        del body
    store.read(lambda connection: still_there(connection, pk))


def cut_off_requests(store: Store, *, pk: int) -> Iterator[FailedRequest]:
    """Yield, in file order, the requests whose answers ended at the limit of tokens."""
    models = store.read(lambda connection: models_of(connection, pk))
    for row, (body,) in file_order.read(store, pk, file_order.CUT_OFF_REQUESTS):
        if body is not None:
            yield _failed(row, models, body, None)
        del body
    store.read(lambda connection: still_there(connection, pk))


def _failed(row: Any, models: dict[int, tuple[str, str]], body: bytes, code: str | None) -> FailedRequest:
    seq, line, custom_id, *_ = row
    return FailedRequest(line, custom_id, *models[seq >> MODEL_SHIFT], body, code)


def one(store: Store, *, pk: int, custom_id: str) -> tuple[Answer, bytes] | None:
    """Return one request with its body; None where the batch has none of this custom_id. Reads the whole batch."""
    query = (
        select(*ANSWER, RESULT.c.body, REQUEST.c.body.label("request"))
        .select_from(REQUEST_WITH_RESULT)
        .where(REQUEST.c.batch == pk, REQUEST.c.custom_id == custom_id)
    )

    def work(connection: Connection) -> tuple[Answer, bytes] | None:
        row = connection.execute(query, execution_options={READS_BODIES: True}).one_or_none()
        if row is None:
            return None
        return to_answer(row, row.body, stopped_chunks(connection, pk)), bytes(row.request)

    return store.read(work)


def _stopped_with(stopped: list[_Stopped], seq: int) -> _Stopped | None:
    """Return the stopped chunk that the request is in."""
    position = bisect_right(stopped, (seq, sys.maxsize)) - 1
    return stopped[position] if position >= 0 and seq <= stopped[position].last else None


def to_answer(row: Any, body: bytes | None, stopped: list[_Stopped]) -> Answer:
    """Return what became of a request, of a row that begins with the columns of ``file_order.ANSWER``."""
    seq, line, custom_id, epoch, *rest = row[: len(ANSWER)]
    outcome = None
    if epoch is not None:
        outcome = Outcome(body, *rest)
    elif (chunk := _stopped_with(stopped, seq)) is not None:
        outcome = Outcome(error_code=chunk.code, error_message=chunk.message, attempts=0)
    return Answer(seq, line, custom_id, outcome)


def stopped_chunks(connection: Connection, pk: int) -> list[_Stopped]:
    """Return the chunks that were stopped before all their requests had results, by their first request."""
    rows = connection.execute(
        select(CHUNK.c.first_seq, CHUNK.c.last_seq, CHUNK.c.error_code, CHUNK.c.error_message)
        .where(CHUNK.c.batch == pk, CHUNK.c.state.in_((ChunkState.CANCELLED, ChunkState.FAILED)))
        .order_by(CHUNK.c.first_seq)
    )
    return [_Stopped(*row) for row in rows]


def models_of(connection: Connection, pk: int) -> dict[int, tuple[str, str]]:
    """Return model and url of the requests, by their ordinal."""
    ordinal: Any = literal_column(f"first_seq >> {MODEL_SHIFT}").label("ordinal")
    rows = connection.execute(
        select(ordinal, CHUNK.c.model, CHUNK.c.url).where(CHUNK.c.batch == pk).distinct()
    )
    return {row.ordinal: (row.model, row.url) for row in rows}
