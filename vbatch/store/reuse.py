"""Give the requests of a new batch the answers that earlier batches have for the very same requests.

The same means: the same custom_id and the same bytes of body, which name the model. Only answers of status 2xx
are taken. Both sides are read a chunk at a time or less, in short transactions, and what must be remembered of the
earlier answers is in an unnamed temporary file: memory is flat however many there are.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from typing import Any

from sqlalchemy import Connection, case, func, select, text

from vbatch.errors import StoreUnreachable
from vbatch.store.database import Store
from vbatch.store.database.backends.protocol import READS_BODIES
from vbatch.store.file_order import pages
from vbatch.store.ranges import between, with_results
from vbatch.store.records import OUTCOME
from vbatch.store.tables import CHUNK, IS_EMPTY, REQUEST, RESULT, SUCCEEDED, UNRECORDED, WAS_CUT_OFF

WRITE_CHUNKS = (
    16  # chunks in one transaction: each costs SQLite three syncs, and no other writer may wait long for it
)
INDEX_CACHE_KIB = 32 * 1024

_COPIED = ", ".join(OUTCOME)
COPY = text(
    f"INSERT INTO result (batch, seq, epoch, {_COPIED})"
    f" SELECT CAST(:batch AS bigint), CAST(:seq AS bigint), 0, {_COPIED} FROM result"
    " WHERE batch = :from_batch AND seq = :from_seq"
    " ON CONFLICT DO NOTHING"  # safe to replay
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """The requests of one chunk: both ends belong to it."""

    first: int
    last: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Reused:
    """What a chunk was given."""

    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    cut_off: int = 0
    empty: int = 0


def take_over(store: Store, *, pk: int, spans: Sequence[Span], earlier: Sequence[int]) -> list[Reused]:
    """Copy the answers of ``earlier`` batches, the first of them first, and return what each span was given.

    To be called while the batch is invisible. A crash leaves rows that go with the batch's other rows.
    Raises StoreUnreachable.
    """
    given: list[Reused] = []
    with Answered.open() as answered:
        for batch in earlier:
            for span in _spans_with_answers(store, batch):
                answered.add(batch, requests(store, batch, span, digest=_digest, having=SUCCEEDED))
        for first in range(0, len(spans), WRITE_CHUNKS):
            some = spans[first : first + WRITE_CHUNKS]
            copies = [
                {"batch": pk, "seq": seq, "from_batch": batch, "from_seq": from_seq}
                for span in some
                for seq, (batch, from_seq) in answered.find(requests(store, pk, span, digest=_digest))
            ]
            given += _copy(store, pk, some, copies) if copies else [Reused()] * len(some)
    return given


class Answered:
    """Which requests have an answer, by a digest of what they ask."""

    def __init__(self, index: sqlite3.Connection) -> None:
        self._index = index
        for statement in (
            "PRAGMA journal_mode=OFF",
            "PRAGMA synchronous=OFF",
            f"PRAGMA cache_size=-{INDEX_CACHE_KIB}",
            "CREATE TABLE answered (digest BLOB PRIMARY KEY, batch INTEGER, seq INTEGER) WITHOUT ROWID",
            "BEGIN",
        ):
            index.execute(statement)

    @classmethod
    @contextmanager
    def open(cls) -> Iterator[Answered]:
        """Open an empty one, in a temporary file that has no name."""
        try:
            with closing(sqlite3.connect("", isolation_level=None)) as index:
                yield cls(index)
        except sqlite3.Error as error:  # of this index alone: those of a store arrive as SQLAlchemy's
            raise StoreUnreachable(
                f"the folder for temporary files refused what --reuse keeps there: {error}",
                hint="df -h /var/tmp /tmp",
            ) from error

    def add(self, batch: int, requests: Iterable[tuple[int, bytes]]) -> None:
        """Remember requests of this batch. What is known already stays."""
        self._index.executemany(
            "INSERT OR IGNORE INTO answered VALUES (?, ?, ?)",
            ((digest, batch, seq) for seq, digest in requests),
        )

    def find(self, requests: Iterable[tuple[int, bytes]]) -> Iterator[tuple[int, tuple[int, int]]]:
        """Yield the requests that have an answer, each with the batch and the ``seq`` of the answer."""
        ask = self._index.execute
        for seq, digest in requests:
            found = ask("SELECT batch, seq FROM answered WHERE digest = ?", (digest,)).fetchone()
            if found is not None:
                yield seq, found


def _spans_with_answers(store: Store, batch: int) -> list[Span]:
    query = (
        select(CHUNK.c.first_seq, CHUNK.c.last_seq)
        .where(CHUNK.c.batch == batch, CHUNK.c.completed > 0)
        .order_by(CHUNK.c.first_seq)
    )
    rows = store.read(lambda connection: connection.execute(query).all())
    return [Span(first=row.first_seq, last=row.last_seq) for row in rows]


def requests(
    store: Store, batch: int, span: Span, *, digest: Callable[[str, bytes], bytes], having: Any = None
) -> Iterator[tuple[int, bytes]]:
    """Yield ``seq`` and digest of the requests of a chunk, or of those ``having`` a result of which that is true.

    ``digest`` is made of the custom_id and the body. The bodies are read a page at a time.
    """
    of_chunk = between(span.first, span.last)
    query = select(REQUEST.c.seq, func.length(REQUEST.c.body).label("size"))
    if having is not None:
        query = query.select_from(with_results(of_chunk)).where(~UNRECORDED, having)
    query = query.where(REQUEST.c.batch == batch, of_chunk(REQUEST))
    rows = store.read(lambda connection: connection.execute(query.order_by(REQUEST.c.seq)).all())
    for page in pages(rows):
        seqs = [row.seq for row in page]
        yield from store.read(partial(_digests, batch=batch, seqs=seqs, digest=digest))


def _digests(
    connection: Connection, batch: int, seqs: Sequence[int], digest: Callable[[str, bytes], bytes]
) -> list[tuple[int, bytes]]:
    query = select(REQUEST.c.seq, REQUEST.c.custom_id, REQUEST.c.body).where(
        REQUEST.c.batch == batch, REQUEST.c.seq.in_(seqs)
    )
    rows = connection.execute(query.order_by(REQUEST.c.seq), execution_options={READS_BODIES: True})
    return [(row.seq, digest(row.custom_id, row.body)) for row in rows]


def _digest(custom_id: str, body: bytes) -> bytes:
    name = custom_id.encode()
    return blake2b(b"%d:%b%b" % (len(name), name, body), digest_size=16).digest()


def _copy(store: Store, pk: int, spans: Sequence[Span], copies: list[dict[str, int]]) -> list[Reused]:
    """Copy answers and count them by span. An answer that was deleted meanwhile is not there to be copied."""

    def work(connection: Connection) -> list[Reused]:
        connection.execute(COPY, copies)
        return [_count(connection, pk, span) for span in spans]

    return store.write(work)


def _count(connection: Connection, pk: int, span: Span) -> Reused:
    counted: Any = connection.execute(
        select(
            func.count().label("requests"),
            func.coalesce(func.sum(RESULT.c.prompt_tokens), 0).label("prompt_tokens"),
            func.coalesce(func.sum(RESULT.c.completion_tokens), 0).label("completion_tokens"),
            func.coalesce(func.sum(RESULT.c.cached_tokens), 0).label("cached_tokens"),
            func.coalesce(func.sum(case((WAS_CUT_OFF, 1), else_=0)), 0).label("cut_off"),
            func.coalesce(func.sum(case((IS_EMPTY, 1), else_=0)), 0).label("empty"),
        ).where(RESULT.c.batch == pk, RESULT.c.seq.between(span.first, span.last))
    ).one()
    return Reused(
        requests=counted.requests,
        prompt_tokens=int(counted.prompt_tokens),
        completion_tokens=int(counted.completion_tokens),
        cached_tokens=int(counted.cached_tokens),
        cut_off=int(counted.cut_off),
        empty=int(counted.empty),
    )
