"""What failed in a batch, kind by kind, each with an example.

Only chunks with failed requests are looked at, a few in each transaction: one failure among a million answers costs
one chunk, and no writer waits for a long read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from vbatch.store.catalog import still_there
from vbatch.store.database import Store
from vbatch.store.records import ChunkState
from vbatch.store.tables import CHUNK, FAILED, REQUEST, REQUEST_WITH_RESULT, RESULT, UNRECORDED

CHUNKS = 16  # looked at in one transaction

_FAILED_RESULTS = (
    select(
        RESULT.c.error_code,
        RESULT.c.status_code,
        func.count().label("requests"),
        func.min(RESULT.c.seq).label("seq"),
        func.max(RESULT.c.attempts).label("attempts"),
    )
    .where(
        RESULT.c.batch == bindparam("pk"),
        RESULT.c.seq.between(bindparam("first"), bindparam("last")),
        FAILED,
    )
    .group_by(RESULT.c.error_code, RESULT.c.status_code)
)
_UNANSWERED = (
    select(func.count().label("requests"), func.min(REQUEST.c.seq).label("seq"))
    .select_from(REQUEST_WITH_RESULT)
    .where(
        REQUEST.c.batch == bindparam("pk"),
        REQUEST.c.seq.between(bindparam("first"), bindparam("last")),
        UNRECORDED,
    )
)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Failed requests of one kind, with the first of them as the example. ``attempts`` is the most that one had."""

    code: str
    status_code: int | None
    count: int
    attempts: int
    custom_id: str
    body: bytes | None
    message: str | None


@dataclass(frozen=True, slots=True)
class _Kind:
    """Requests that failed in one way: ``message`` is that of their chunk, where they failed with it."""

    code: str | None
    status_code: int | None
    message: str | None


@dataclass(frozen=True, slots=True)
class _Many:
    """How many requests those are, and the first of them."""

    requests: int
    seq: int
    attempts: int

    def __add__(self, other: _Many) -> _Many:
        return _Many(
            self.requests + other.requests, min(self.seq, other.seq), max(self.attempts, other.attempts)
        )


def failure_codes(store: Store, *, pk: int) -> list[FailureGroup]:
    """Return the kinds of failure of a batch, the most frequent first. Raises NoSuchBatch where it was deleted."""
    found: dict[_Kind, _Many] = {}
    after = -1
    while chunks := store.read(partial(_chunks, pk=pk, after=after)):
        for kind, many in store.read(partial(_kinds, pk=pk, chunks=chunks)):
            found[kind] = found[kind] + many if kind in found else many
        after = chunks[-1].number
    groups = store.read(lambda connection: _groups(connection, pk, found))
    return sorted(groups, key=lambda group: -group.count)


def _chunks(connection: Connection, pk: int, after: int) -> Sequence[Any]:
    query = (
        select(CHUNK)
        .where(CHUNK.c.batch == pk, CHUNK.c.number > after, CHUNK.c.failed > 0)
        .order_by(CHUNK.c.number)
        .limit(CHUNKS)
    )
    return connection.execute(query).all()


def _kinds(connection: Connection, pk: int, chunks: Sequence[Any]) -> list[tuple[_Kind, _Many]]:
    kinds: list[tuple[_Kind, _Many]] = []
    for chunk in chunks:
        span = {"pk": pk, "first": chunk.first_seq, "last": chunk.last_seq}
        kinds += [
            (_Kind(row.error_code, row.status_code, None), _Many(row.requests, row.seq, row.attempts))
            for row in connection.execute(_FAILED_RESULTS, span)
        ]
        if chunk.state == ChunkState.FAILED:  # what has no result of its own failed with the chunk
            row = connection.execute(_UNANSWERED, span).one()
            if row.requests:
                kind = _Kind(chunk.error_code, None, chunk.error_message)
                kinds.append((kind, _Many(row.requests, row.seq, attempts=0)))
    return kinds


def _groups(connection: Connection, pk: int, found: Mapping[_Kind, _Many]) -> list[FailureGroup]:
    still_there(connection, pk)
    return [_group(connection, pk, kind, many) for kind, many in found.items()]


def _group(connection: Connection, pk: int, kind: _Kind, many: _Many) -> FailureGroup:
    example = connection.execute(
        select(REQUEST.c.custom_id, RESULT.c.body, RESULT.c.error_message)
        .select_from(REQUEST_WITH_RESULT)
        .where(REQUEST.c.batch == pk, REQUEST.c.seq == many.seq)
    ).one()
    return FailureGroup(
        code=kind.code or f"http_{kind.status_code}",
        status_code=kind.status_code,
        count=many.requests,
        attempts=many.attempts,
        custom_id=example.custom_id,
        body=example.body,
        message=kind.message or example.error_message,
    )
