"""The finished requests of a batch as flat records: for tables, and for programs that want no nesting."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from vbatch.batches.results import Selection, of_family, sampled, succeeded, was_cut_off
from vbatch.store import Store, catalog
from vbatch.store.exchanges import Exchange, endpoints, exchanges, request_bodies
from vbatch.store.records import Answer, Batch, Outcome
from vbatch.tabular.prompts import schema_of
from vbatch.tabular.record import Record, Source, record_of

EVERYTHING = Selection()
_VECTORS = frozenset({"/v1/embeddings", "/v2/embed", "/pooling"})


def records(store: Store, reference: str, selection: Selection = EVERYTHING) -> Iterator[Record]:
    """Return the flat records of the requests that are finished now, answers and failures, in file order.

    With ``selection.errors`` only the failures. Raises NoSuchBatch, AmbiguousBatch; the iterator raises NoSuchBatch at
    its end where the batch was deleted meanwhile, for then some are missing.
    """
    return map(record_of, Finished(store, catalog.find(store, reference), selection))


@dataclass
class Finished:
    """What the records of a batch are made of. ``seen`` counts the requests that were finished, chosen or not."""

    store: Store
    batch: Batch
    selection: Selection
    seen: int = 0

    @property
    def unfinished(self) -> int:
        """How many requests of the batch were not finished, once all have been read."""
        return max(self.batch.counts.total - self.seen, 0)

    def __iter__(self) -> Iterator[Source]:
        size = self.selection.sample
        return self._chosen() if size is None else iter(sampled(self._chosen(), size))

    def _chosen(self) -> Iterator[Source]:
        chosen = self.selection
        found = of_family(self.store, self.batch, self._read, _answer, retries=chosen.retries)
        for owner, exchange in found:
            self.seen += 1
            answer = exchange.answer
            if not (chosen.errors and succeeded(answer)) and (was_cut_off(answer) or not chosen.cut_off):
                yield source_of(owner, exchange)
            del exchange, answer  # before the next one is read: it may be large

    def _read(self, pk: int) -> Iterator[Exchange]:
        return exchanges(self.store, pk=pk)


def shared_schema(store: Store, batch: Batch) -> bytes | None:
    """Return the JSON schema that all requests of a batch ask their answers to follow; None where they share none.

    Reads all requests, unless the first has none.
    """
    shared: bytes | None = None
    for body in request_bodies(store, pk=batch.pk):
        schema = schema_of(body)
        if schema is None or shared not in (None, schema):
            return None
        shared = schema
    return shared


def asks_for_vectors(store: Store, batch: Batch) -> bool:
    """Return whether a request of a batch is for embeddings."""
    return not _VECTORS.isdisjoint(endpoints(store, pk=batch.pk))


def _answer(exchange: Exchange) -> Answer:
    return exchange.answer


def source_of(owner: Batch, exchange: Exchange) -> Source:
    answer = exchange.answer
    outcome = answer.outcome or Outcome()
    return Source(
        custom_id=answer.custom_id,
        line=answer.line,
        batch_id=owner.id,
        model=exchange.model,
        url=exchange.url,
        request=exchange.request,
        status_code=outcome.status_code,
        body=outcome.body,
        error_code=outcome.error_code,
        error_message=outcome.error_message,
        finish=outcome.finish,
        prompt_tokens=outcome.prompt_tokens,
        completion_tokens=outcome.completion_tokens,
        cached_tokens=outcome.cached_tokens,
        attempts=outcome.attempts,
    )
