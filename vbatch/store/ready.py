"""Which chunks a worker gets next: by priority, then in the order of submission, and those first that begin alike."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any

from sqlalchemy import Connection, or_, select

from vbatch.store.tables import CHUNK, READY, READY_ALIKE, same_chunk

Closed = Mapping[str, Collection[str]]  # the urls of each model that the loaded engine does not answer at
BEST_FIRST = (CHUNK.c.priority.desc(), CHUNK.c.batch, CHUNK.c.number)


def open_to(closed: Closed) -> Iterator[Any]:
    """Yield the conditions for chunks that may be claimed."""
    for model, urls in closed.items():
        yield or_(CHUNK.c.model != model, CHUNK.c.url.not_in(sorted(urls)))


def best(
    connection: Connection,
    models: Collection[str],
    closed: Closed,
    groups: Collection[tuple[int, int]],
    *,
    most: int,
) -> list[Any]:
    """Lock and return the best ready chunks of these models: those of each in the order of the index, then the best.

    Those of one of the ``groups`` (batch, alike) go before the others of their batch, where that one is next.
    """
    ready = select(CHUNK).where(READY, *open_to(closed))
    locked = ready.with_for_update(skip_locked=True)

    def next_ones(query: Any, most: int) -> list[Any]:
        ordered = query.order_by(*BEST_FIRST).limit(most)
        each = (ordered.where(CHUNK.c.model == model) for model in sorted(models))
        found = [row for one in each for row in connection.execute(one)]
        return sorted(found, key=lambda row: (-row.priority, row.batch, row.number))[:most]

    def of_group(batch: int, alike: int) -> Any:
        # without the model, or SQLite would sort all ready chunks of it: groups of two models are never alike
        return locked.where(READY_ALIKE, CHUNK.c.batch == batch, CHUNK.c.alike == alike)

    preferred: list[Any] = []
    if groups and (turn := next_ones(ready, 1)) and not turn[0].alone:
        for batch, alike in sorted(groups):
            if batch == turn[0].batch and (left := most - len(preferred)):
                query = of_group(batch, alike).order_by(CHUNK.c.number).limit(left)
                preferred += connection.execute(query).all()
    others = locked
    for row in preferred:
        others = others.where(~same_chunk(row))
    left = most - len(preferred)
    return [*preferred, *(next_ones(others, left) if left else ())]
