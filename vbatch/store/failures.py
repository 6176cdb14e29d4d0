"""What failed in a batch, kind by kind, each with an example."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, and_, exists, func, or_, select, text

from vbatch.protocol import BatchStatus
from vbatch.store import tables
from vbatch.store.database import Store
from vbatch.store.records import ChunkState
from vbatch.store.tables import OPEN, BatchRow, ChunkRow, RequestRow, ResultRow, WorkerRow

_batch = BatchRow.__table__  # type: ignore[attr-defined]
_chunk = ChunkRow.__table__  # type: ignore[attr-defined]
_request = RequestRow.__table__  # type: ignore[attr-defined]
_result = ResultRow.__table__  # type: ignore[attr-defined]
_worker = WorkerRow.__table__  # type: ignore[attr-defined]

_VISIBLE = _batch.c.status != BatchStatus.VALIDATING
_OPEN_CHUNK = exists().where(_chunk.c.batch == _batch.c.pk, text(f"chunk.{OPEN}"))
_UNFINISHED = and_(text(f"batch.{tables.UNFINISHED}"), _VISIBLE)


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Failed requests of one kind, with one of them as the example."""

    code: str
    status_code: int | None
    count: int
    custom_id: str
    body: bytes | None
    message: str | None


def failure_codes(store: Store, *, pk: int) -> list[FailureGroup]:
    """Return the kinds of failure of a batch, the most frequent first."""
    failed = and_(
        _result.c.batch == pk,
        or_(_result.c.status_code.is_(None), _result.c.status_code < 200, _result.c.status_code >= 300),
    )

    def work(connection: Connection) -> list[FailureGroup]:
        groups = connection.execute(
            select(
                _result.c.error_code,
                _result.c.status_code,
                func.count().label("requests"),
                func.min(_result.c.seq).label("seq"),
            )
            .where(failed)
            .group_by(_result.c.error_code, _result.c.status_code)
        ).all()
        found = [_failure_group(connection, pk, row) for row in groups]
        found += [_stopped_group(row) for row in _unanswered(connection, pk)]
        return sorted(found, key=lambda group: -group.count)

    return store.read(work)


def _unanswered(connection: Connection, pk: int) -> list[Any]:
    """Count the requests that failed with their chunk, without a result of their own, by the chunk's reason."""
    of_the_chunk = and_(
        _request.c.batch == _chunk.c.batch, _request.c.seq.between(_chunk.c.first_seq, _chunk.c.last_seq)
    )
    of_the_request = and_(_result.c.batch == _request.c.batch, _result.c.seq == _request.c.seq)
    grouped = (
        select(
            _chunk.c.error_code,
            _chunk.c.error_message,
            func.count().label("requests"),
            func.min(_request.c.seq).label("seq"),
        )
        .select_from(_chunk.join(_request, of_the_chunk).outerjoin(_result, of_the_request))
        .where(_chunk.c.batch == pk, _chunk.c.state == ChunkState.FAILED, _result.c.seq.is_(None))
        .group_by(_chunk.c.error_code, _chunk.c.error_message)
        .subquery()
    )
    example = and_(_request.c.batch == pk, _request.c.seq == grouped.c.seq)
    return list(connection.execute(select(grouped, _request.c.custom_id).join(_request, example)).all())


def _stopped_group(row: Any) -> FailureGroup:
    return FailureGroup(
        code=row.error_code,
        status_code=None,
        count=row.requests,
        custom_id=row.custom_id,
        body=None,
        message=row.error_message,
    )


def _failure_group(connection: Connection, pk: int, row: Any) -> FailureGroup:
    example = connection.execute(
        select(_request.c.custom_id, _result.c.body, _result.c.error_message)
        .join(_result, and_(_result.c.batch == _request.c.batch, _result.c.seq == _request.c.seq))
        .where(_request.c.batch == pk, _request.c.seq == row.seq)
    ).one()
    return FailureGroup(
        code=row.error_code or f"http_{row.status_code}",
        status_code=row.status_code,
        count=row.requests,
        custom_id=example.custom_id,
        body=example.body,
        message=example.error_message,
    )
