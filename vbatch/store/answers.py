"""Read what became of the requests of a batch, in file order, in short transactions at any time.

``seq`` is the order of work, so a file that mixes models is one ascending run of lines per model; these are
merged by line. Pages are read by key: no snapshot is held open, and no writer waits for a long read.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, func, select

from vbatch.store.catalog import still_there
from vbatch.store.database import Store
from vbatch.store.ingest import MODEL_SHIFT
from vbatch.store.records import Answer, ChunkKey, ChunkState, Result
from vbatch.store.tables import ChunkRow, RequestRow, ResultRow

_chunk = ChunkRow.__table__  # type: ignore[attr-defined]
_request = RequestRow.__table__  # type: ignore[attr-defined]
_result = ResultRow.__table__  # type: ignore[attr-defined]

PAGE = 1000  # requests read in one transaction


@dataclass(frozen=True, slots=True, kw_only=True)
class FailedRequest:
    """A request that is worth submitting again. ``line`` is its place in the original file."""

    line: int
    custom_id: str
    model: str
    body: bytes


@dataclass(frozen=True, slots=True)
class _Stopped:
    first: int
    last: int
    code: str
    message: str


def in_file_order(store: Store, *, pk: int) -> Iterator[Answer]:
    """Yield every request of the batch with its result, or with the reason why it will never have one.

    Raises NoSuchBatch at the end where the batch was deleted meanwhile, for then some were missing.
    """
    yield from _merge(store, pk, _every_page)
    store.read(lambda connection: still_there(connection, pk))


def finished(store: Store, *, pk: int) -> Iterator[Answer]:
    """Yield the requests that are finished: the same lines as at the end, as far as they are known."""
    return (
        answer
        for answer in in_file_order(store, pk=pk)
        if answer.result is not None or answer.error_code is not None
    )


def failed_requests(store: Store, *, pk: int) -> Iterator[FailedRequest]:
    """Yield, in file order, the requests that ended without a 2xx answer, bodies included."""
    models = store.read(lambda connection: _models(connection, pk))
    for answer in finished(store, pk=pk):
        if answer.result is None or not answer.result.succeeded:
            body = store.read(lambda connection, seq=answer.seq: _body(connection, pk, seq))  # type: ignore[misc]
            yield FailedRequest(
                line=answer.line,
                custom_id=answer.custom_id,
                model=models[answer.seq >> MODEL_SHIFT],
                body=body,
            )


_Page = Callable[[Connection, int, int, int], list[Any]]


def _merge(store: Store, pk: int, page: _Page) -> Iterator[Answer]:
    ordinals, stopped = store.read(lambda connection: (_ordinals(connection, pk), _stopped(connection, pk)))
    runs = [_run(store, pk, ordinal, page, stopped) for ordinal in ordinals]
    return heapq.merge(*runs, key=lambda answer: answer.line)


def _run(store: Store, pk: int, ordinal: int, page: _Page, stopped: list[_Stopped]) -> Iterator[Answer]:
    after, end = (ordinal << MODEL_SHIFT) - 1, (ordinal + 1) << MODEL_SHIFT
    starts = [chunk.first for chunk in stopped]
    while True:
        rows = store.read(lambda connection, last=after: page(connection, pk, last, end))  # type: ignore[misc]
        for row in rows:
            yield _to_answer(row, stopped, starts)
        if len(rows) < PAGE:
            return
        after = rows[-1].seq


def _every_page(connection: Connection, pk: int, after: int, end: int) -> list[Any]:
    joined = _request.outerjoin(
        _result, and_(_result.c.batch == _request.c.batch, _result.c.seq == _request.c.seq)
    )
    query = (
        select(
            _request.c.batch,
            _request.c.seq,
            _request.c.line,
            _request.c.custom_id,
            _result.c.epoch,
            _result.c.status_code,
            _result.c.request_id,
            _result.c.body,
            _result.c.error_code,
            _result.c.error_message,
            _result.c.prompt_tokens,
            _result.c.completion_tokens,
            _result.c.attempts,
        )
        .select_from(joined)
        .where(_request.c.batch == pk, _request.c.seq > after, _request.c.seq < end)
        .order_by(_request.c.seq)
        .limit(PAGE)
    )
    return list(connection.execute(query).all())


def _to_answer(row: Any, stopped: list[_Stopped], starts: list[int]) -> Answer:
    result = code = message = None
    if row.epoch is not None:
        result = Result(
            key=ChunkKey(row.batch, 0),
            epoch=row.epoch,
            seq=row.seq,
            status_code=row.status_code,
            request_id=row.request_id,
            body=None if row.body is None else bytes(row.body),
            error_code=row.error_code,
            error_message=row.error_message,
            prompt_tokens=row.prompt_tokens,
            completion_tokens=row.completion_tokens,
            attempts=row.attempts,
        )
    elif stopped:
        chunk = stopped[bisect_right(starts, row.seq) - 1]
        if chunk.first <= row.seq <= chunk.last:
            code, message = chunk.code, chunk.message
    return Answer(
        seq=row.seq,
        line=row.line,
        custom_id=row.custom_id,
        result=result,
        error_code=code,
        error_message=message,
    )


def _stopped(connection: Connection, pk: int) -> list[_Stopped]:
    """Return the chunks that were stopped before all their requests had results, by their first request."""
    rows = connection.execute(
        select(_chunk.c.first_seq, _chunk.c.last_seq, _chunk.c.error_code, _chunk.c.error_message)
        .where(_chunk.c.batch == pk, _chunk.c.state.in_((ChunkState.CANCELLED, ChunkState.FAILED)))
        .order_by(_chunk.c.first_seq)
    )
    return [_Stopped(*row) for row in rows]


def _ordinals(connection: Connection, pk: int) -> list[int]:
    """Return the ordinals of the batch's models, by jumping from one to the next."""
    found: list[int] = []
    while True:
        beyond = (found[-1] + 1) << MODEL_SHIFT if found else 0
        seq = connection.execute(
            select(func.min(_request.c.seq)).where(_request.c.batch == pk, _request.c.seq >= beyond)
        ).scalar()
        if seq is None:
            return found
        found.append(seq >> MODEL_SHIFT)


def _models(connection: Connection, pk: int) -> dict[int, str]:
    rows = connection.execute(
        select(func.min(_chunk.c.first_seq).label("seq"), _chunk.c.model)
        .where(_chunk.c.batch == pk)
        .group_by(_chunk.c.model)
    )
    return {row.seq >> MODEL_SHIFT: row.model for row in rows}


def _body(connection: Connection, pk: int, seq: int) -> bytes:
    body = connection.execute(
        select(_request.c.body).where(_request.c.batch == pk, _request.c.seq == seq)
    ).scalar_one()
    return bytes(body)
