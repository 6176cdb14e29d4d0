"""Read what became of the requests of a batch, in file order, in short transactions at any time.

``seq`` is the order of work, so a file that mixes models is one ascending run of lines per model; these are
merged by line. Pages are read by key: no snapshot is held open, and no writer waits for a long read. Bodies are
read after that, a page of them at a time: memory is flat however large they are and however many models there are.
"""

from __future__ import annotations

import heapq
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, case, func, select

from vbatch.store.catalog import still_there
from vbatch.store.database import Store
from vbatch.store.records import MODEL_SHIFT, OUTCOME, Answer, ChunkState, Outcome
from vbatch.store.tables import CHUNK, FAILED, REQUEST, REQUEST_WITH_RESULT, RESULT

PAGE = 1000  # requests read in one transaction; their bodies in another one, perhaps in several
PAGE_BYTES = 16 << 20  # of bodies in a page; one body alone may be larger


_WITHOUT_BODY = tuple(name for name in OUTCOME if name != "body")


@dataclass(frozen=True, slots=True)
class _Bodies:
    """Which bodies are read: how large that of a request is (None without one), and how a run of them is read."""

    size: Any
    select: Any


def _between(table: Any) -> Any:
    return and_(table.c.batch == bindparam("pk"), table.c.seq.between(bindparam("first"), bindparam("last")))


_ANSWERS = _Bodies(
    size=func.length(RESULT.c.body), select=select(RESULT.c.seq, RESULT.c.body).where(_between(RESULT))
)
_FAILED_REQUESTS = _Bodies(
    size=case((FAILED, func.length(REQUEST.c.body))),
    select=select(REQUEST.c.seq, REQUEST.c.body)
    .select_from(REQUEST_WITH_RESULT)
    .where(_between(REQUEST), FAILED),
)


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
    for row, body, stopped in _read(store, pk, _ANSWERS):
        yield _to_answer(row, body, stopped)
    store.read(lambda connection: still_there(connection, pk))


def finished(store: Store, *, pk: int) -> Iterator[Answer]:
    """Yield the requests that are finished: the same lines as at the end, as far as they are known."""
    return (answer for answer in in_file_order(store, pk=pk) if answer.outcome is not None)


def failed_requests(store: Store, *, pk: int) -> Iterator[FailedRequest]:
    """Yield, in file order, the requests that ended without a 2xx answer, bodies included."""
    models = store.read(lambda connection: _models(connection, pk))
    for row, body, stopped in _read(store, pk, _FAILED_REQUESTS):
        if body is not None and (row.epoch is not None or _stopped_with(stopped, row.seq) is not None):
            yield FailedRequest(
                line=row.line,
                custom_id=row.custom_id,
                model=models[row.seq >> MODEL_SHIFT],
                body=body,
            )
    store.read(lambda connection: still_there(connection, pk))


def pages(rows: Iterable[Any], *, most: int = PAGE) -> Iterator[list[Any]]:
    """Cut rows into pages that fit into memory, never an empty one.

    ``row.size`` is what its body takes, None without a body.
    """
    page: list[Any] = []
    held = 0
    for row in rows:
        size = row.size or 0
        if page and (len(page) >= most or held + size > PAGE_BYTES):
            yield page
            page, held = [], 0
        page.append(row)
        held += size
    if page:
        yield page


def _read(store: Store, pk: int, bodies: _Bodies) -> Iterator[tuple[Any, bytes | None, list[_Stopped]]]:
    """Yield every request in file order, with its body of this kind and the chunks that were stopped."""
    ordinals, stopped = store.read(lambda connection: (_ordinals(connection, pk), _stopped(connection, pk)))
    limit = max(1, PAGE // max(1, len(ordinals)))
    runs = [_run(store, pk, ordinal, bodies, limit) for ordinal in ordinals]
    for page in pages(heapq.merge(*runs, key=lambda row: row.line), most=PAGE):
        found = store.read(partial(_bodies_of, pk=pk, bodies=bodies, rows=page))
        for row in page:
            yield row, found.pop(row.seq, None), stopped


def _run(store: Store, pk: int, ordinal: int, bodies: _Bodies, limit: int) -> Iterator[Any]:
    """Yield the requests of one model, without bodies."""
    after, end = (ordinal << MODEL_SHIFT) - 1, (ordinal + 1) << MODEL_SHIFT
    query = (
        select(
            REQUEST.c.seq,
            REQUEST.c.line,
            REQUEST.c.custom_id,
            RESULT.c.epoch,
            *(RESULT.c[name] for name in _WITHOUT_BODY),
            bodies.size.label("size"),
        )
        .select_from(REQUEST_WITH_RESULT)
        .where(REQUEST.c.batch == pk, REQUEST.c.seq > bindparam("after"), REQUEST.c.seq < end)
        .order_by(REQUEST.c.seq)
        .limit(limit)
    )
    while True:
        rows = store.read(partial(_rows, query=query, after=after))
        yield from rows
        if len(rows) < limit:
            return
        after = rows[-1].seq


def _rows(connection: Connection, query: Select[Any], after: int) -> Sequence[Any]:
    return connection.execute(query, {"after": after}).all()


def _bodies_of(connection: Connection, pk: int, bodies: _Bodies, rows: Sequence[Any]) -> dict[int, bytes]:
    """Read the bodies of a page: of each model it holds an unbroken run."""
    runs: dict[int, list[int]] = {}
    for row in rows:
        if row.size is not None:
            runs.setdefault(row.seq >> MODEL_SHIFT, []).append(row.seq)
    found: dict[int, bytes] = {}
    for seqs in runs.values():
        span = {"pk": pk, "first": seqs[0], "last": seqs[-1]}
        found.update(connection.execute(bodies.select, span).all())
    return found


def _stopped_with(stopped: list[_Stopped], seq: int) -> _Stopped | None:
    """Return the stopped chunk that the request is in."""
    chunk = stopped[position] if (position := bisect_right(stopped, seq, key=_first) - 1) >= 0 else None
    return chunk if chunk is not None and seq <= chunk.last else None


def _first(chunk: _Stopped) -> int:
    return chunk.first


def _to_answer(row: Any, body: bytes | None, stopped: list[_Stopped]) -> Answer:
    outcome = None
    if row.epoch is not None:
        outcome = Outcome(body=body, **{name: getattr(row, name) for name in _WITHOUT_BODY})
    elif (chunk := _stopped_with(stopped, row.seq)) is not None:
        outcome = Outcome(error_code=chunk.code, error_message=chunk.message, attempts=0)
    return Answer(seq=row.seq, line=row.line, custom_id=row.custom_id, outcome=outcome)


def _stopped(connection: Connection, pk: int) -> list[_Stopped]:
    """Return the chunks that were stopped before all their requests had results, by their first request."""
    rows = connection.execute(
        select(CHUNK.c.first_seq, CHUNK.c.last_seq, CHUNK.c.error_code, CHUNK.c.error_message)
        .where(CHUNK.c.batch == pk, CHUNK.c.state.in_((ChunkState.CANCELLED, ChunkState.FAILED)))
        .order_by(CHUNK.c.first_seq)
    )
    return [_Stopped(*row) for row in rows]


def _ordinals(connection: Connection, pk: int) -> list[int]:
    """Return the ordinals of the batch's models, by jumping from one to the next."""
    found: list[int] = []
    while True:
        beyond = (found[-1] + 1) << MODEL_SHIFT if found else 0
        seq = connection.execute(
            select(func.min(REQUEST.c.seq)).where(REQUEST.c.batch == pk, REQUEST.c.seq >= beyond)
        ).scalar()
        if seq is None:
            return found
        found.append(seq >> MODEL_SHIFT)


def _models(connection: Connection, pk: int) -> dict[int, str]:
    rows = connection.execute(
        select(func.min(CHUNK.c.first_seq).label("seq"), CHUNK.c.model)
        .where(CHUNK.c.batch == pk)
        .group_by(CHUNK.c.model)
    )
    return {row.seq >> MODEL_SHIFT: row.model for row in rows}
