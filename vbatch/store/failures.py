"""What failed in a batch, kind by kind, each with an example.

Only chunks with failed requests are looked at, a few in each transaction: one failure among a million answers costs
one chunk, and no writer waits for a long read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, bindparam, func, select

from vbatch.store.catalog import still_there
from vbatch.store.database import Store
from vbatch.store.ranges import between, with_results
from vbatch.store.records import ChunkState
from vbatch.store.tables import CHUNK, FAILED, REQUEST, RESULT, UNRECORDED

CHUNKS = 16  # looked at in one transaction
BODY_BYTES = 4096  # of an error's body; its message is at the beginning
KINDS = 200  # distinguished; further ones of the same code are counted together

# Equal bodies are grouped by the database; of a long one only the beginning is compared and read.
_BODY = func.substr(RESULT.c.body, 1, BODY_BYTES)
_FAILED_RESULTS = (
    select(
        RESULT.c.error_code,
        RESULT.c.status_code,
        RESULT.c.error_message,
        _BODY.label("body"),
        func.count().label("requests"),
        func.min(RESULT.c.seq).label("seq"),
        func.max(RESULT.c.attempts).label("attempts"),
    )
    .where(
        RESULT.c.batch == bindparam("pk"),
        RESULT.c.seq.between(bindparam("first"), bindparam("last")),
        FAILED,
    )
    .group_by(RESULT.c.error_code, RESULT.c.status_code, RESULT.c.error_message, _BODY)
)
_IN_CHUNK = between(bindparam("first"), bindparam("last"))
_UNANSWERED = (
    select(func.count().label("requests"), func.min(REQUEST.c.seq).label("seq"))
    .select_from(with_results(_IN_CHUNK))
    .where(
        REQUEST.c.batch == bindparam("pk"),
        _IN_CHUNK(REQUEST),
        UNRECORDED,
    )
)


MASKED = 300  # characters of a message that are compared
_DIFFERING = re.compile(r"'[^']*'|\"[^\"]*\"|`[^`]*`|\b[0-9a-f]{8,}\b|\b\w*\d[\w.-]*", re.I)
_MESSAGE = re.compile(r'"message"\s*:\s*"((?:[^"\\]|\\.)*)')


@dataclass(frozen=True, slots=True, kw_only=True)
class FailureGroup:
    """Failed requests with one cause, with the first of them as the example. ``attempts`` is the most that one had.

    ``message`` is that of the example; the others differ from it in numbers and in what is quoted at most.
    """

    code: str
    status_code: int | None
    count: int
    attempts: int
    custom_id: str
    message: str


@dataclass(frozen=True, slots=True)
class _Kind:
    """Requests that failed in one way. ``masked`` is their message without what differs from request to request."""

    code: str | None
    status_code: int | None
    masked: str


@dataclass(frozen=True, slots=True)
class _Many:
    """How many requests those are, and the first of them."""

    requests: int
    seq: int
    attempts: int
    message: str

    def __add__(self, other: _Many) -> _Many:
        first = min(self, other, key=lambda many: many.seq)
        return _Many(
            self.requests + other.requests, first.seq, max(self.attempts, other.attempts), first.message
        )


def failure_codes(store: Store, *, pk: int) -> list[FailureGroup]:
    """Return the causes of the failures of a batch, the most frequent first. Raises NoSuchBatch where it was deleted.

    At most ``KINDS`` are distinguished, so that a million different messages take no more memory than two hundred.
    """
    found: dict[_Kind, _Many] = {}
    after = -1
    while chunks := store.read(partial(_chunks, pk=pk, after=after)):
        for kind, many in store.read(partial(_kinds, pk=pk, chunks=chunks)):
            full = kind not in found and len(found) >= KINDS
            key = _Kind(kind.code, kind.status_code, "") if full else kind
            found[key] = found[key] + many if key in found else many
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
            _of_message(
                row, row.error_message or error_message(row.body), row.status_code, attempts=row.attempts
            )
            for row in connection.execute(_FAILED_RESULTS, span)
        ]
        if chunk.state == ChunkState.FAILED:  # what has no result of its own failed with the chunk
            row = connection.execute(_UNANSWERED, span).one()
            if row.requests:
                many = _Many(row.requests, row.seq, 0, chunk.error_message or "")
                kinds.append((_Kind(chunk.error_code, None, mask(many.message)), many))
    return kinds


def _of_message(row: Any, message: str, status: int | None, *, attempts: int) -> tuple[_Kind, _Many]:
    kind = _Kind(row.error_code, status, mask(message))
    return kind, _Many(row.requests, row.seq, attempts, message)


def mask(message: str) -> str:
    """Return a message without what differs among failures of one cause: numbers, ids, what is quoted."""
    return _DIFFERING.sub("…", message)[:MASKED]


def error_message(body: bytes | None) -> str:
    """Return the message of an error object, as the engine wrote it; of one that is cut off, its beginning."""
    text = bytes(body or b"").decode(errors="replace")
    try:
        answer = json.loads(text)
    except ValueError:
        found = _MESSAGE.search(text)
        return found[1] if found else text[:MASKED]
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    message = error.get("message", error) if isinstance(error, dict) else error
    return message if isinstance(message, str) else json.dumps(message, ensure_ascii=False)


def _groups(connection: Connection, pk: int, found: Mapping[_Kind, _Many]) -> list[FailureGroup]:
    still_there(connection, pk)
    return [_group(connection, pk, kind, many) for kind, many in found.items()]


def _group(connection: Connection, pk: int, kind: _Kind, many: _Many) -> FailureGroup:
    custom_id = connection.execute(
        select(REQUEST.c.custom_id).where(REQUEST.c.batch == pk, REQUEST.c.seq == many.seq)
    ).scalar_one()
    return FailureGroup(
        code=kind.code or f"http_{kind.status_code}",
        status_code=kind.status_code,
        count=many.requests,
        attempts=many.attempts,
        custom_id=custom_id,
        message=many.message,
    )
