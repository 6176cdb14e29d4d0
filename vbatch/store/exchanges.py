"""Read the requests of a batch together with what became of them, bodies of both, in file order, in flat memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, case, func, select

from vbatch.store.catalog import still_there
from vbatch.store.database import Store
from vbatch.store.file_order import bodies, in_batch, read
from vbatch.store.ranges import MODEL_SHIFT, Range, with_results
from vbatch.store.records import Answer
from vbatch.store.results import models_of, stopped_chunks, to_answer
from vbatch.store.tables import REQUEST, RESULT, UNRECORDED

_SIZE = func.length(REQUEST.c.body) + func.coalesce(func.length(RESULT.c.body), 0)


def _both(part: Range, *conditions: Any) -> Select[Any]:
    joined = select(REQUEST.c.seq, REQUEST.c.body, RESULT.c.body.label("answer")).select_from(
        with_results(part)
    )
    return in_batch(joined.where(*conditions), REQUEST, part)


_FINISHED = bodies(case((~UNRECORDED, _SIZE)), lambda part: _both(part, ~UNRECORDED))
_EVERY = bodies(_SIZE, _both)  # also where a request ended without a result
_REQUESTS = bodies(
    func.length(REQUEST.c.body), lambda part: in_batch(select(REQUEST.c.seq, REQUEST.c.body), REQUEST, part)
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """A finished request: what was asked, of which model at which endpoint, and what became of it."""

    model: str
    url: str
    request: bytes
    answer: Answer

    @property
    def line(self) -> int:
        """Its place in the input file."""
        return self.answer.line


def exchanges(store: Store, *, pk: int) -> Iterator[Exchange]:
    """Yield the finished requests of a batch in file order.

    Raises NoSuchBatch at the end where the batch was deleted meanwhile, for then some were missing.
    """
    models, stopped = store.read(
        lambda connection: (models_of(connection, pk), stopped_chunks(connection, pk))
    )
    for row, (request, body) in read(store, pk, _EVERY if stopped else _FINISHED):
        if request is not None:
            answer = to_answer(row, None if body is None else bytes(body), stopped)
            if answer.outcome is not None:
                model, url = models[row.seq >> MODEL_SHIFT]
                yield Exchange(model=model, url=url, request=bytes(request), answer=answer)
            del answer
        del request, body  # before the next page is read: they may be large
    store.read(lambda connection: still_there(connection, pk))


def request_bodies(store: Store, *, pk: int) -> Iterator[bytes]:
    """Yield the bodies of all requests of a batch in file order."""
    for _, (request,) in read(store, pk, _REQUESTS):
        if request is not None:
            yield bytes(request)
        del request


def endpoints(store: Store, *, pk: int) -> frozenset[str]:
    """Return the endpoints that the requests of a batch go to."""
    return frozenset(url for _, url in store.read(lambda connection: models_of(connection, pk)).values())
