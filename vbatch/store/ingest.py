"""Take a batch in, row by row and fast, invisible until it is whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Connection, insert, null, update

from vbatch.errors import StoreUnreachable
from vbatch.protocol import BatchStatus
from vbatch.store import reuse, staging
from vbatch.store.catalog import find_in
from vbatch.store.database import Store
from vbatch.store.database.backends.protocol import BulkInsert
from vbatch.store.records import CHUNK_REQUESTS, MODEL_SHIFT, Batch, ChunkState, NewBatch
from vbatch.store.tables import BATCH, CHUNK, REQUEST
from vbatch.system.processes import ProcessIdentity

CHUNK_BYTES = 16 << 20


@dataclass(slots=True)
class _Run:
    """The requests of one model: where its present chunk began and how big it is."""

    model: str
    first: int
    next: int
    bytes: int = 0


class Ingest:
    """A batch on its way in. ``add`` is the hot path: a million calls in a few seconds."""

    def __init__(self, store: Store, pk: int, new: NewBatch, inserting: BulkInsert) -> None:
        self._store = store
        self._pk = pk
        self._new = new
        self._inserting = inserting
        self._runs: dict[str, _Run] = {}
        self._rows: list[tuple[Any, ...]] = []
        self._bytes = 0
        self._chunks: list[dict[str, Any]] = []
        self._total = 0
        self.accepted: Batch | None = None

    def add(self, line: int, custom_id: str, model: str, body: bytes) -> None:
        """Take one request. Raises StoreUnreachable when the database becomes unreachable."""
        run = self._runs.get(model)
        if run is None:
            first = len(self._runs) << MODEL_SHIFT
            run = self._runs[model] = _Run(model, first, first)
        size = len(body)
        self._rows.append((self._pk, run.next, line, custom_id, body))
        run.next += 1
        run.bytes += size
        if run.next - run.first >= CHUNK_REQUESTS or run.bytes >= CHUNK_BYTES:
            self._cut(run)
        self._bytes += size
        if self._bytes >= self._inserting.write_bytes:
            self._flush()

    @property
    def total(self) -> int:
        """How many requests were added."""
        return self._total + sum(run.next - run.first for run in self._runs.values())

    def accept(
        self, *, endpoint: str, input_sha256: str, input_bytes: int, earlier: Sequence[Batch] = ()
    ) -> Batch:
        """Make the batch visible, with its chunks, in one transaction that is safe to replay.

        Requests that one of the ``earlier`` batches has answered need not run: they have that answer.
        """
        self._flush()
        for run in self._runs.values():
            if run.next > run.first:
                self._cut(run)
        models = list(self._runs)
        chunks = [chunk | {"url": endpoint} for chunk in self._chunks]
        self._inserting.close()  # the rows must be durable before the batch shows them
        reused = self._take_over(chunks, [batch.pk for batch in earlier if batch.endpoint == endpoint])

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
                    in_progress_at=datetime.now(UTC),
                    endpoint=endpoint,
                    input_sha256=input_sha256,
                    input_bytes=input_bytes,
                    model=models[0] if len(models) == 1 else None,
                    total=self._total,
                    reused=reused,
                    submitter=null(),
                )
            )
            if changed.rowcount:
                connection.execute(insert(CHUNK), chunks)
            return find_in(connection, self._pk)

        self.accepted = self._store.write(work)
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
            if taken.requests == chunk["total"]:
                chunk["state"] = ChunkState.DONE
        return sum(taken.requests for taken in given)

    def _cut(self, run: _Run) -> None:
        count = run.next - run.first
        self._chunks.append(
            {
                "batch": self._pk,
                "n": len(self._chunks),
                "model": run.model,
                "priority": self._new.priority,
                "first_seq": run.first,
                "last_seq": run.next - 1,
                "state": ChunkState.READY,
                "total": count,
            }
        )
        self._total += count
        run.first = run.next
        run.bytes = 0

    def _flush(self) -> None:
        if self._rows:
            self._inserting.write(self._rows)
            self._rows.clear()
            self._bytes = 0


@contextmanager
def ingest(store: Store, *, new: NewBatch, submitter: ProcessIdentity) -> Iterator[Ingest]:
    """Open an ingest. Leaving it without ``accept`` removes every trace.

    Raises StoreUnreachable when the database becomes unreachable in the middle: what was written is then invisible, and
    removed by ``staging.sweep`` later.
    """
    pk = staging.announce(store, new, submitter)
    running: Ingest | None = None
    try:
        with store.bulk_insert(REQUEST) as inserting:
            running = Ingest(store, pk, new, inserting)
            yield running
    except BaseException:
        if running is None or running.accepted is None:
            with suppress(StoreUnreachable):  # the first error is reported; a sweep removes the rest
                staging.take_back(store, pk, submitter)
        raise
    if running.accepted is None:
        staging.take_back(store, pk, submitter)
