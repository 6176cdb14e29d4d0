"""Find the requests of a batch that follow a line of its file, or come before it: a page of them at a time.

Of each run the place is found by halving, for lines ascend in it (in a grouped one from window to window). From there
on a window is read in a transaction of its own until the page is full: a page behind a million others costs no more
than the first, and no writer waits for a long search.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, NamedTuple

from sqlalchemy import Connection, and_, exists, func, or_, select

from vbatch.store.database import Store
from vbatch.store.database.backends.protocol import READS_BODIES
from vbatch.store.exchanges import Exchange
from vbatch.store.file_order import ANSWER, end_of_run, first_of_each
from vbatch.store.ranges import MODEL_SHIFT, WINDOW_SHIFT, between, is_grouped, with_results
from vbatch.store.records import ChunkState
from vbatch.store.results import models_of, stopped_chunks, to_answer
from vbatch.store.tables import CHUNK, FAILED, REQUEST, RESULT, UNRECORDED, WAS_CUT_OFF


class Which(StrEnum):
    """Which requests: all, those without a 2xx answer, those whose answers ended at the limit of tokens."""

    ALL = "all"
    FAILED = "failed"
    CUT_OFF = "cut_off"


class Place(NamedTuple):
    """Where a request is: its key in the store, and its line of the file."""

    seq: int
    line: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Start:
    """Where a page begins: behind ``line``, or with ``backwards`` before it."""

    line: int
    backwards: bool = False


_STOPPED = exists().where(
    CHUNK.c.batch == REQUEST.c.batch,
    CHUNK.c.state.in_((ChunkState.CANCELLED, ChunkState.FAILED)),
    REQUEST.c.seq.between(CHUNK.c.first_seq, CHUNK.c.last_seq),
)
_CONDITIONS: dict[Which, Any] = {
    Which.FAILED: or_(and_(~UNRECORDED, FAILED), and_(UNRECORDED, _STOPPED)),
    Which.CUT_OFF: WAS_CUT_OFF,
}


def places(store: Store, *, pk: int, which: Which, start: Start, limit: int) -> list[Place]:
    """Return at most so many requests, those that are nearest to the start first."""
    found: list[Place] = []
    for first in store.read(lambda connection: first_of_each(connection, pk)):
        found += _of_run(store, pk=pk, first=first, which=which, start=start, limit=limit)
    return sorted(found, key=lambda place: place.line, reverse=start.backwards)[:limit]


def read(store: Store, *, pk: int, places: Sequence[Place]) -> Iterator[Exchange]:
    """Yield these requests with their bodies, one after another, also those that are not finished."""
    models, stopped = store.read(
        lambda connection: (models_of(connection, pk), stopped_chunks(connection, pk))
    )
    for place in places:
        row = store.read(partial(_one, pk=pk, seq=place.seq))
        if row is not None:
            model, url = models.get(place.seq >> MODEL_SHIFT, ("", ""))  # it may be deleted just now
            body = None if row.body is None else bytes(row.body)
            yield Exchange(
                model=model, url=url, request=bytes(row.request), answer=to_answer(row, body, stopped)
            )
        del row  # before the next one is read: it may be large


def _one(connection: Connection, pk: int, seq: int) -> Any:
    query = (
        select(*ANSWER, RESULT.c.body, REQUEST.c.body.label("request"))
        .select_from(with_results(between(seq, seq)))
        .where(REQUEST.c.batch == pk, REQUEST.c.seq == seq)
    )
    return connection.execute(query, execution_options={READS_BODIES: True}).one_or_none()


def _of_run(store: Store, *, pk: int, first: int, which: Which, start: Start, limit: int) -> list[Place]:
    """Return the requests of one run, from the window on in which the line is."""
    where: int | None = store.read(partial(_nearest, pk=pk, first=first, line=start.line))
    found: list[Place] = []
    while where is not None and len(found) < limit:
        window = where >> WINDOW_SHIFT << WINDOW_SHIFT
        low, high = max(window, first), window + (1 << WINDOW_SHIFT) - 1
        more = limit - len(found)
        found += store.read(
            partial(_in_window, pk=pk, low=low, high=high, which=which, start=start, limit=more)
        )
        where = store.read(partial(_next, pk=pk, first=first, low=low, high=high, backwards=start.backwards))
    return found


def _nearest(connection: Connection, pk: int, first: int, line: int) -> int:
    """Return a place of the run: no later line is before it, and no earlier one behind its window."""
    shift = WINDOW_SHIFT if is_grouped(first) else 0
    last = connection.execute(
        select(func.max(REQUEST.c.seq)).where(REQUEST.c.batch == pk, REQUEST.c.seq < end_of_run(first))
    ).scalar()
    low, high = first >> shift, ((first if last is None else last) >> shift) + 1
    while high - low > 1:
        middle = (low + high) // 2
        there = connection.execute(
            select(REQUEST.c.line)
            .where(REQUEST.c.batch == pk, REQUEST.c.seq >= middle << shift)
            .order_by(REQUEST.c.seq)
            .limit(1)
        ).scalar()
        low, high = (middle, high) if there is not None and there <= line else (low, middle)
    return low << shift


def _in_window(
    connection: Connection, *, pk: int, low: int, high: int, which: Which, start: Start, limit: int
) -> list[Place]:
    part = between(low, high)
    key = REQUEST.c.line if is_grouped(low) else REQUEST.c.seq
    table = REQUEST if which is Which.ALL else with_results(part)
    beyond = REQUEST.c.line < start.line if start.backwards else REQUEST.c.line > start.line
    query = (
        select(REQUEST.c.seq, REQUEST.c.line)
        .select_from(table)
        .where(REQUEST.c.batch == pk, part(REQUEST), beyond)
        .order_by(key.desc() if start.backwards else key)
        .limit(limit)
    )
    if which is not Which.ALL:
        query = query.where(_CONDITIONS[which])
    return [Place(*row) for row in connection.execute(query)]


def _next(connection: Connection, *, pk: int, first: int, low: int, high: int, backwards: bool) -> int | None:
    """Return a request of the next window that has one."""
    if backwards:
        query = select(func.max(REQUEST.c.seq)).where(REQUEST.c.seq >= first, REQUEST.c.seq < low)
    else:
        query = select(func.min(REQUEST.c.seq)).where(REQUEST.c.seq > high, REQUEST.c.seq < end_of_run(first))
    found: int | None = connection.execute(query.where(REQUEST.c.batch == pk)).scalar()
    return found
