"""Read the requests of a batch in the order of its file, flat in memory, in short transactions.

``seq`` is the order of work. A file is one ascending run of lines per model and url, or two: where requests that begin
alike were put together (``vbatch.batches.prefix_order``), the lines of a run ascend from window to window alone. The
runs are merged by line. Pages are read by key: no snapshot is held open, and no writer waits for a long read. Small
bodies come with them. Others are read after that, a page of them at a time: memory is flat however large they are and
however many models there are.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from sqlalchemy import Connection, Select, and_, bindparam, case, func, select

from vbatch.store.bodies import drop_buffers
from vbatch.store.database import Store
from vbatch.store.database.backends.protocol import READS_BODIES
from vbatch.store.ranges import MODEL_SHIFT, WINDOW_SHIFT, Range, between, is_grouped, with_results
from vbatch.store.records import OUTCOME
from vbatch.store.tables import FAILED, REQUEST, RESULT, WAS_CUT_OFF

PAGE = 1000  # requests read in one transaction; their bodies in another one, perhaps in several
PAGE_BYTES = 16 << 20  # of bodies in a page; one body alone may be larger
SMALL = 8192  # bytes of all bodies of a request that come with it: half of a page's

Found = tuple[bytes | None, ...]  # the bodies of one request

_WITHOUT_BODY = tuple(name for name in OUTCOME if name != "body")
# What the rows that an Answer is made of begin with (``vbatch.store.results.to_answer``).
ANSWER = (
    REQUEST.c.seq,
    REQUEST.c.line,
    REQUEST.c.custom_id,
    RESULT.c.epoch,
    *(RESULT.c[name] for name in _WITHOUT_BODY),
)


@dataclass(frozen=True, slots=True)
class Bodies:
    """Which bodies are read: how large those of a request are (None without any), and how those of a page are read.

    Either query takes ``pk``; ``unbroken`` takes first and last of a part of a run, ``single`` takes seqs. Their first
    column is ``seq``, the others are the bodies. ``small`` are these, where they are small.
    """

    size: Any
    small: tuple[Any, ...]
    unbroken: Select[Any]
    single: Select[Any]


def bodies(size: Any, reading: Callable[[Range], Select[Any]]) -> Bodies:
    """Return bodies of this size, as ``reading`` selects those of requests in a range."""
    single = reading(lambda table: table.c.seq.in_(bindparam("seqs", expanding=True)))
    unbroken = reading(between(bindparam("first"), bindparam("last")))
    is_small = size <= bindparam("small", callable_=lambda: SMALL)
    small = tuple(case((is_small, body)) for _, body in [*single.selected_columns.items()][1:])
    return Bodies(size=size, small=small, unbroken=unbroken, single=single)


def in_batch(query: Select[Any], table: Any, part: Range) -> Select[Any]:
    """Return the query for this part of a batch; ``table`` is its first."""
    return query.where(table.c.batch == bindparam("pk"), part(table))


def _requests_where(condition: Any) -> Bodies:
    def reading(part: Range) -> Select[Any]:
        joined = select(REQUEST.c.seq, REQUEST.c.body).select_from(with_results(part)).where(condition)
        return in_batch(joined, REQUEST, part)

    return bodies(case((condition, func.length(REQUEST.c.body))), reading)


ANSWERS = bodies(
    func.length(RESULT.c.body), lambda part: in_batch(select(RESULT.c.seq, RESULT.c.body), RESULT, part)
)
FAILED_REQUESTS = _requests_where(FAILED)  # those without a result, too
CUT_OFF_REQUESTS = _requests_where(WAS_CUT_OFF)


def pages(rows: Iterable[Any], *, most: int = PAGE) -> Iterator[list[Any]]:
    """Cut rows into pages that fit into memory, never an empty one.

    ``row.size`` is what its body takes, None without a body.
    """
    page: list[Any] = []
    held = 0
    for row in rows:
        size = row.size or 0
        if page and (len(page) >= most or held + size > PAGE_BYTES):
            yield page
            page, held = [], 0
        page.append(row)
        held += size
    if page:
        yield page


def read(store: Store, pk: int, bodies: Bodies) -> Iterator[tuple[Any, Found]]:
    """Yield every request in file order, with its bodies of this kind: None each, where it has none."""
    many = len(bodies.small)
    firsts = store.read(lambda connection: first_of_each(connection, pk))
    limit = max(1, PAGE // max(1, len(firsts)))
    runs = [
        (_grouped_run if is_grouped(first) else _run)(store, pk, first, bodies, limit) for first in firsts
    ]
    for page in pages(runs[0] if len(runs) == 1 else heapq.merge(*runs, key=_line), most=PAGE):
        large = [row for row in page if row.size is not None and row.size > SMALL]
        found = store.read(partial(_bodies_of, pk=pk, bodies=bodies, rows=large)) if large else {}
        for row in page:
            small: Found = row[-many:]
            yield row, found.pop(row.seq, small) if found else small


def _run(store: Store, pk: int, first: int, bodies: Bodies, limit: int) -> Iterator[Any]:
    """Yield the requests of one run from its first on, without bodies."""
    after, end = first - 1, end_of_run(first)

    def within(table: Any) -> Any:
        return and_(table.c.seq > bindparam("after"), table.c.seq < end)

    query = _without_bodies(pk, bodies, within).order_by(REQUEST.c.seq).limit(limit)
    while True:
        rows = store.read(partial(_rows, query=query, after=after))
        yield from rows
        if len(rows) < limit:
            return
        after = rows[-1].seq


def _grouped_run(store: Store, pk: int, first: int, bodies: Bodies, limit: int) -> Iterator[Any]:
    """Yield the requests of one run whose windows were put into another order, without bodies."""
    end = end_of_run(first)
    places = select(REQUEST.c.seq, REQUEST.c.line).where(REQUEST.c.batch == pk)
    next_seq = select(func.min(REQUEST.c.seq)).where(
        REQUEST.c.batch == pk, REQUEST.c.seq >= bindparam("after"), REQUEST.c.seq < end
    )
    window = places.where(REQUEST.c.seq >= bindparam("after"), REQUEST.c.seq < bindparam("next"))
    asked = _without_bodies(pk, bodies, lambda table: table.c.seq.in_(bindparam("seqs", expanding=True)))
    start: int | None = first
    while start is not None:
        after = ((start >> WINDOW_SHIFT) + 1) << WINDOW_SHIFT
        ordered = sorted(store.read(partial(_rows, query=window, after=start, next=after)), key=_line)
        for place in range(0, len(ordered), limit):
            seqs = [row.seq for row in ordered[place : place + limit]]
            yield from sorted(store.read(partial(_rows, query=asked, seqs=seqs)), key=_line)
        (found,) = store.read(partial(_rows, query=next_seq, after=after))
        start = found[0]


def end_of_run(seq: int) -> int:
    """Return the first seq behind the run that this one is in."""
    return ((seq >> MODEL_SHIFT) + 1) << MODEL_SHIFT


def _line(row: Any) -> int:
    return int(row.line)


def _without_bodies(pk: int, bodies: Bodies, part: Range) -> Select[Any]:
    return (
        select(
            *ANSWER,
            bodies.size.label("size"),
            *bodies.small,
        )
        .select_from(with_results(part))
        .where(REQUEST.c.batch == pk, part(REQUEST))
    )


def _rows(connection: Connection, query: Select[Any], **values: Any) -> Sequence[Any]:
    return connection.execute(query, values, execution_options={READS_BODIES: True}).all()


def _bodies_of(connection: Connection, pk: int, bodies: Bodies, rows: Sequence[Any]) -> dict[int, Found]:
    """Read the large bodies of a page: of each run it holds an unbroken part, or single requests of a window."""
    runs: dict[int, list[int]] = {}
    for row in rows:
        runs.setdefault(row.seq >> MODEL_SHIFT, []).append(row.seq)
    found: dict[int, Found] = {}
    for seqs in runs.values():
        if is_grouped(seqs[0]):
            query, values = bodies.single, {"pk": pk, "seqs": seqs}
        else:
            query, values = bodies.unbroken, {"pk": pk, "first": seqs[0], "last": seqs[-1]}
        read_rows = connection.execute(query, values, execution_options={READS_BODIES: True})
        found.update((row[0], tuple(row[1:])) for row in read_rows)
    drop_buffers(connection, sum(len(body or b"") for each in found.values() for body in each))
    return found


def first_of_each(connection: Connection, pk: int) -> list[int]:
    """Return the first request of each run, by jumping from one to the next."""
    found: list[int] = []
    while True:
        beyond = end_of_run(found[-1]) if found else 0
        seq = connection.execute(
            select(func.min(REQUEST.c.seq)).where(REQUEST.c.batch == pk, REQUEST.c.seq >= beyond)
        ).scalar()
        if seq is None:
            return found
        found.append(seq)
