"""Take a batch in, row by row and fast, invisible until it is whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count, repeat
from operator import itemgetter
from typing import Any

from sqlalchemy import Connection, insert, null, update

from vbatch.errors import StoreReplaced, StoreUnreachable, WrongStatus
from vbatch.protocol import BatchStatus
from vbatch.store import reuse, staging
from vbatch.store.catalog import find_in
from vbatch.store.database import Store
from vbatch.store.database.backends.protocol import BulkInsert
from vbatch.store.database.columns import NOW
from vbatch.store.ranges import WINDOW_SHIFT, first_of_run
from vbatch.store.records import CHUNK_REQUESTS, SEVERAL, Batch, ChunkState, NewBatch
from vbatch.store.tables import BATCH, CHUNK, REQUEST
from vbatch.system.processes import ProcessIdentity

CHUNK_BYTES = 16 << 20
TRIES = 3  # of storing a batch when the database became unreachable in the middle
ROW_BYTES = 320  # what a row takes in memory beside its body: short ones would be kept in great number
QUICK_BYTES = 1 << 20  # of bodies that are counted together
CHUNK_ROWS = 1000  # chunks inserted at once
_LINE, _ID, _BODY = map(itemgetter, (1, 2, 3))


@dataclass(slots=True)
class _Run:
    """The requests of one model and url: where its present chunk began and how big it is.

    ``state`` is that of its chunks: those of duplicates wait. ``alike`` is the large group that its next request is of,
    ``mixed`` whether the chunk began with other ones.
    """

    model: str
    url: str
    state: ChunkState
    first: int
    next: int
    bytes: int = 0
    alike: int | None = None
    mixed: bool = False


class Ingest:
    """A batch on its way in. ``add`` is the hot path: a million calls in a few seconds."""

    def __init__(self, store: Store, pk: int, new: NewBatch, inserting: BulkInsert) -> None:
        self._store = store
        self._pk = pk
        self._new = new
        self._inserting = inserting
        self._runs: dict[tuple[str, str, bool, bool], _Run] = {}
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0
        self._chunks: list[dict[str, Any]] = []
        self._total = 0
        self.accepted: Batch | None = None
        self.may_have_taken_out = False  # requests of another batch, which are then in this one alone

    def add(
        self,
        line: int,
        custom_id: str,
        model: str,
        body: bytes,
        url: str = "",
        *,
        grouped: bool = False,
        duplicate: bool = False,
    ) -> None:
        """Take one request, for the endpoint of the whole batch without a ``url`` of its own.

        Lines ascend for each model and url; those of ``grouped`` requests do so from window to window alone. A
        ``duplicate`` has the body of another request for the same model and url, and gets its outcome.
        Raises StoreUnreachable when the database becomes unreachable.
        """
        kind = model, url, grouped, duplicate
        run = self._runs.get(kind) or self._begin(*kind)
        size = len(body)
        self._rows.append((self._pk, run.next, line, custom_id, body))
        run.next += 1
        run.bytes += size
        if run.next - run.first >= CHUNK_REQUESTS or run.bytes >= CHUNK_BYTES:
            self._cut(run)
        self._bytes += size + ROW_BYTES
        if self._bytes >= self._inserting.write_bytes:
            self._flush()

    def add_all(
        self, rows: Sequence[tuple[Any, int, str, bytes]], model: str, url: str, *, grouped: bool = False
    ) -> None:
        """Take requests of one model and url as ``add`` does, quicker; each is something, line, custom_id and body."""
        kind = model, url, grouped, False
        run = self._runs.get(kind) or self._begin(*kind)
        place = 0
        while place < len(rows):
            part = rows[place : place + CHUNK_REQUESTS - (run.next - run.first)]
            place += len(part)
            size = sum(map(len, map(_BODY, part)))
            if size > QUICK_BYTES:
                for _, line, custom_id, body in part:
                    self.add(line, custom_id, model, body, url, grouped=grouped)
                continue
            columns = map(_LINE, part), map(_ID, part), map(_BODY, part)
            self._rows += zip(repeat(self._pk), count(run.next), *columns)
            run.next += len(part)
            run.bytes += size
            if run.next - run.first >= CHUNK_REQUESTS or run.bytes >= CHUNK_BYTES:
                self._cut(run)
            self._bytes += size + ROW_BYTES * len(part)
            if self._bytes >= self._inserting.write_bytes:
                self._flush()

    def begin_window(self, model: str, url: str) -> None:
        """Begin a window of grouped requests of this model and url: a chunk ends with the window before."""
        run = self._runs.get((model, url, True, False))
        if run is not None:
            if run.next > run.first:
                self._cut(run)
            run.first = run.next = (((run.next - 1) >> WINDOW_SHIFT) + 1) << WINDOW_SHIFT

    def begin_group(self, model: str, url: str, *, alike: int | None, fewest: int) -> None:
        """Begin a group of grouped requests. Where it is a large one, ``alike`` is what its chunks are known by.

        A chunk that has so many requests at least ends before a large group.
        """
        kind = model, url, True, False
        run = self._runs.get(kind) or self._begin(*kind)
        if alike is not None and run.next - run.first >= fewest:
            self._cut(run)
        run.alike, run.mixed = alike, run.next > run.first

    @property
    def total(self) -> int:
        """How many requests were added."""
        return self._total + sum(run.next - run.first for run in self._runs.values())

    def accept(
        self,
        *,
        endpoint: str,
        input_sha256: str,
        earlier: Sequence[Batch] = (),
        skipped: int = 0,
        ignored: Sequence[Mapping[str, Any]] = (),
        also: Callable[[Connection], None] | None = None,
    ) -> Batch:
        """Make the batch visible, with its chunks, in one transaction that is safe to replay.

        ``skipped`` lines were left out; ``ignored`` are fields of the others. Requests that one of the ``earlier``
        batches has answered need not run: they have that answer. ``also`` is done in the same transaction; what it
        raises refuses the batch.
        """
        self._flush()
        for run in self._runs.values():
            if run.next > run.first:
                self._cut(run)
        models = list(dict.fromkeys(run.model for run in self._runs.values()))
        chunks = [chunk | {"url": chunk["url"] or endpoint} for chunk in self._chunks]
        self._inserting.close()  # the rows must be durable before the batch shows them
        # of several endpoints it is not known which one an earlier answer came from
        alike = [batch.pk for batch in earlier if batch.endpoint == endpoint != SEVERAL]
        reused = self._take_over(chunks, alike)

        def work(connection: Connection) -> Batch:
            changed = connection.execute(
                update(BATCH)
                .where(
                    BATCH.c.pk == self._pk,
                    BATCH.c.status == BatchStatus.VALIDATING,
                    BATCH.c.submitter.is_not(None),
                )
                .values(
                    status=BatchStatus.IN_PROGRESS,
                    in_progress_at=NOW,
                    endpoint=endpoint,
                    input_sha256=input_sha256,
                    model=models[0] if len(models) == 1 else None,
                    total=self._total,
                    reused=reused,
                    skipped=skipped,
                    ignored=list(ignored) or None,
                    submitter=null(),
                )
            )
            if changed.rowcount:
                for first in range(0, len(chunks), CHUNK_ROWS):
                    connection.execute(insert(CHUNK), chunks[first : first + CHUNK_ROWS])
                if also is not None:
                    also(connection)
            return find_in(connection, self._pk)

        self.may_have_taken_out = also is not None
        try:
            self.accepted = self._store.write(work)
        except WrongStatus:  # a refusal, not a COMMIT without an answer
            self.may_have_taken_out = False
            raise
        return self.accepted

    def _take_over(self, chunks: list[dict[str, Any]], earlier: Sequence[int]) -> int:
        """Answer what earlier batches have answered, enter it into the chunks, and return how many those are."""
        if not earlier:
            return 0
        spans = [reuse.Span(first=chunk["first_seq"], last=chunk["last_seq"]) for chunk in chunks]
        given = reuse.take_over(self._store, pk=self._pk, spans=spans, earlier=earlier)
        for chunk, taken in zip(chunks, given, strict=True):
            chunk["completed"] = taken.requests
            chunk["prompt_tokens"] = taken.prompt_tokens
            chunk["completion_tokens"] = taken.completion_tokens
            chunk["cached_tokens"] = taken.cached_tokens
            chunk["cut_off"] = taken.cut_off
            chunk["empty"] = taken.empty
            if taken.requests == chunk["total"]:
                chunk["state"] = ChunkState.DONE
        return sum(taken.requests for taken in given)

    def _begin(self, model: str, url: str, grouped: bool, duplicate: bool) -> _Run:
        first = first_of_run(len(self._runs), grouped=grouped)
        state = ChunkState.WAITING if duplicate else ChunkState.READY
        run = self._runs[model, url, grouped, duplicate] = _Run(model, url, state, first, first)
        return run

    def _cut(self, run: _Run) -> None:
        count = run.next - run.first
        self._chunks.append(
            {
                "batch": self._pk,
                "number": len(self._chunks),
                "model": run.model,
                "url": run.url,
                "priority": self._new.priority,
                "first_seq": run.first,
                "last_seq": run.next - 1,
                "state": run.state,
                "total": count,
                "alike": None if run.mixed else run.alike,
            }
        )
        self._total += count
        run.first = run.next
        run.bytes = 0
        run.mixed = False

    def _flush(self) -> None:
        if self._rows:
            self._inserting.write(self._rows)
            self._rows = []
            self._bytes = 0


def patiently(
    store: Store, storing: Callable[[], Batch], *, tries: int = TRIES, bound: bool = False
) -> Batch:
    """Store a batch, from its start again when the database becomes unreachable in the middle, or is replaced.

    Raises StoreUnreachable after so many ``tries``, and StoreReplaced at once where the batch is ``bound`` to others
    that are not there any more: it takes answers or requests from them.
    """
    for _ in range(tries - 1):
        try:
            return storing()
        except StoreReplaced:
            if bound:
                raise
        except StoreUnreachable:
            pass
        store.prepare()  # waits for the database
    return storing()


@contextmanager
def ingest(store: Store, *, new: NewBatch, submitter: ProcessIdentity) -> Iterator[Ingest]:
    """Open an ingest. Leaving it without ``accept`` removes every trace.

    Raises StoreUnreachable when the database becomes unreachable in the middle: what was written is then invisible, and
    removed by ``staging.sweep`` later. So it is where the COMMIT of ``accept`` may have taken requests out of another
    batch: if it has, they are in this batch alone.
    """
    pk = staging.announce(store, new, submitter)
    running: Ingest | None = None
    try:
        with store.bulk_insert(REQUEST) as inserting:
            running = Ingest(store, pk, new, inserting)
            yield running
    except BaseException:
        if running is None or not (running.accepted or running.may_have_taken_out):
            with suppress(StoreUnreachable):  # the first error is reported; a sweep removes the rest
                staging.take_back(store, pk, submitter)
        raise
    if running.accepted is None:
        staging.take_back(store, pk, submitter)
