"""Requests with the same body in one batch, of which only the first runs: the others get its outcome.

The others stand in chunks of their own, which wait: no worker claims them, and they keep no batch open. When no
request of the batch is open any more, and before its files are written, each gets a copy of the result that its first
has, an answer or a failure. Which one that is, is found by the bodies themselves, so that nothing else is stored.
A copy that is interrupted anywhere may be repeated by any process: it leads to the same rows.
"""

from __future__ import annotations

import errno
import sqlite3
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any

from sqlalchemy import Connection, case, func, select, true, update

from vbatch.errors import StoreUnreachable
from vbatch.store.database import Store
from vbatch.store.records import ChunkState
from vbatch.store.reuse import COPY, INDEX_CACHE_KIB, WRITE_CHUNKS, Answered, Span, requests
from vbatch.store.tables import CHUNK, IS_EMPTY, RESULT, SUCCEEDED, WAITING, WAS_CUT_OFF, same_chunk

UNANSWERED = ("not_run", "The request with the same body has no result.")
_open = CHUNK.c.total - CHUNK.c.completed - CHUNK.c.failed


class SeenBodies:
    """Which bodies were seen: in an unnamed temporary file, so that memory is flat however many those are."""

    def __init__(self) -> None:
        self._index = sqlite3.connect("", isolation_level=None)
        for statement in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            f"PRAGMA cache_size=-{INDEX_CACHE_KIB}",
            "CREATE TABLE seen (digest BLOB PRIMARY KEY) WITHOUT ROWID",
            "BEGIN",
        ):
            self._index.execute(statement)

    def is_new(self, model: str, url: str, body: bytes) -> bool:
        """Return whether it is the first request with this body, and remember it. Raises StoreUnreachable."""
        try:
            found = self._index.execute(
                "INSERT OR IGNORE INTO seen VALUES (?)", (_digest(model, url, "", body),)
            )
        except sqlite3.Error as error:
            raise StoreUnreachable(
                f"the folder for temporary files refused what --dedupe keeps there: {error}",
                hint="df -h /var/tmp /tmp",
            ) from error
        return found.rowcount == 1

    def close(self) -> None:
        """Remove the file."""
        self._index.close()


def waiting(store: Store, *, pk: int) -> int:
    """Return how many requests of a batch wait for the outcome of an identical one."""
    query = select(func.coalesce(func.sum(_open), 0)).where(CHUNK.c.batch == pk, WAITING)
    return store.read(lambda connection: int(connection.execute(query).scalar_one()))


def answer(store: Store, *, pk: int, ended: bool) -> None:
    """Give the waiting requests of a batch the outcomes that their first ones have by now.

    ``ended``: no request of the batch is open any more. What then has no outcome ended as its first did: without one.
    Raises OSError where the folder for temporary files refuses, NoSuchBatch never: of a deleted batch nothing waits.
    """
    chunks = store.read(lambda connection: _chunks(connection, pk))
    to_answer = [chunk for chunk in chunks if chunk.state == ChunkState.WAITING]
    if not to_answer:
        return
    stopped = {
        (chunk.model, chunk.url): (chunk.error_code, chunk.error_message)
        for chunk in chunks
        if chunk.state in (ChunkState.CANCELLED, ChunkState.FAILED)
    }
    try:
        with Answered.open() as index:
            for chunk in chunks:
                if chunk.state != ChunkState.WAITING and chunk.completed + chunk.failed:
                    index.add(pk, _digests(store, pk, chunk, having=true()))
            for first in range(0, len(to_answer), WRITE_CHUNKS):
                some = to_answer[first : first + WRITE_CHUNKS]
                copies = [_copies(store, pk, chunk, index) for chunk in some]
                store.write(
                    partial(_write, pairs=list(zip(some, copies, strict=True)), ended=ended, stopped=stopped)
                )
    except StoreUnreachable as error:
        if not isinstance(error.__cause__, sqlite3.Error):
            raise
        raise OSError(errno.ENOSPC, str(error.__cause__), tempfile.gettempdir()) from error


def _chunks(connection: Connection, pk: int) -> Sequence[Any]:
    return connection.execute(select(CHUNK).where(CHUNK.c.batch == pk).order_by(CHUNK.c.number)).all()


def _digests(store: Store, pk: int, chunk: Any, *, having: Any = None) -> Iterator[tuple[int, bytes]]:
    span = Span(first=chunk.first_seq, last=chunk.last_seq)
    return requests(store, pk, span, digest=partial(_digest, chunk.model, chunk.url), having=having)


def _copies(store: Store, pk: int, chunk: Any, index: Answered) -> list[dict[str, int]]:
    return [
        {"batch": pk, "seq": seq, "from_batch": batch, "from_seq": from_seq}
        for seq, (batch, from_seq) in index.find(_digests(store, pk, chunk))
    ]


def _digest(model: str, url: str, _custom_id: str, body: bytes) -> bytes:
    name = f"{len(model)}:{model}{len(url)}:{url}".encode()
    return blake2b(name + body, digest_size=16).digest()


def _write(
    connection: Connection,
    pairs: Sequence[tuple[Any, list[dict[str, int]]]],
    *,
    ended: bool,
    stopped: Mapping[tuple[str, str], tuple[str | None, str | None]],
) -> None:
    """Copy the outcomes for a few chunks, and enter them; not for one that waits no more: it was taken out."""
    for chunk, copies in pairs:
        locked = select(CHUNK.c.number).where(same_chunk(chunk), WAITING).with_for_update()
        if connection.execute(locked).one_or_none() is None:
            continue
        if copies:
            connection.execute(COPY, copies)
        values = _counted(connection, chunk)
        if values["completed"] + values["failed"] == chunk.total:
            values["state"] = ChunkState.DONE
        elif ended:
            code, message = stopped.get((chunk.model, chunk.url), UNANSWERED)
            values |= {"state": ChunkState.CANCELLED, "error_code": code, "error_message": message}
        connection.execute(update(CHUNK).where(same_chunk(chunk)).values(**values))


def _counted(connection: Connection, chunk: Any) -> dict[str, Any]:
    """Count what a chunk has by now: from the rows themselves, so that a repeated copy counts nothing twice."""

    def many(condition: Any) -> Any:
        return func.coalesce(func.sum(case((condition, 1), else_=0)), 0)

    def total(column: Any) -> Any:
        return func.coalesce(func.sum(column), 0)

    row = connection.execute(
        select(
            func.count().label("results"),
            many(SUCCEEDED).label("completed"),
            total(RESULT.c.prompt_tokens).label("prompt_tokens"),
            total(RESULT.c.completion_tokens).label("completion_tokens"),
            total(RESULT.c.cached_tokens).label("cached_tokens"),
            many(WAS_CUT_OFF).label("cut_off"),
            many(IS_EMPTY).label("empty"),
        ).where(RESULT.c.batch == chunk.batch, RESULT.c.seq.between(chunk.first_seq, chunk.last_seq))
    ).one()
    counts = {name: int(value) for name, value in row._mapping.items()}
    return {"failed": counts.pop("results") - counts["completed"], **counts}
