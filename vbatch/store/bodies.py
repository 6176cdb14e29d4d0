"""The bodies of leased requests, read a page of bytes at a time.

A chunk may hold 256 bodies of any size: older ones were cut by the number of their requests alone. So a lease brings
the bodies that there is room for, and what the others take; these are read when their turn comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

from sqlalchemy import Connection, func, select

from vbatch.store.database import Store
from vbatch.store.database.backends.protocol import READS_BODIES
from vbatch.store.ranges import between, with_results
from vbatch.store.records import Lease, Request, Unread
from vbatch.store.tables import REQUEST, UNRECORDED

READ_BYTES = 32 << 20  # of bodies that are read before their requests can start
BUFFER_BYTES = 32 << 20  # which a connection may keep

_WITH_BODY = (REQUEST.c.seq, REQUEST.c.line, REQUEST.c.custom_id, REQUEST.c.body)


def open_requests(
    connection: Connection, row: Any, *, room: int
) -> tuple[tuple[Request, ...], tuple[Unread, ...]]:
    """Return the requests of a chunk that have no result: the first with bodies of ``room`` bytes, then the rest."""
    within = between(row.first_seq, row.last_seq)
    of_chunk = (REQUEST.c.batch == row.batch, within(REQUEST))
    sizes = select(REQUEST.c.seq, func.length(REQUEST.c.body)).where(*of_chunk)
    bodies = select(*_WITH_BODY).where(*of_chunk)
    if row.epoch or row.completed:
        sizes, bodies = (
            query.select_from(with_results(within)).where(UNRECORDED) for query in (sizes, bodies)
        )
    waiting = [Unread(*found) for found in connection.execute(sizes.order_by(REQUEST.c.seq))]
    fitting = fits(waiting, room)
    if not fitting:
        return (), tuple(waiting)
    page = bodies.where(REQUEST.c.seq <= waiting[fitting - 1].seq)
    return _requests(connection, page), tuple(waiting[fitting:])


def fits(waiting: Sequence[Unread], room: int) -> int:
    """Return how many of these bodies, from the first, fit into so many bytes."""
    return sum(held <= room for held in accumulate(unread.size for unread in waiting))


def read(store: Store, lease: Lease, page: Sequence[Unread]) -> tuple[Request, ...]:
    """Read the bodies of leased requests. Where their batch was deleted meanwhile, they are missing."""
    query = select(*_WITH_BODY).where(
        REQUEST.c.batch == lease.key.batch, REQUEST.c.seq.in_([unread.seq for unread in page])
    )

    def work(connection: Connection) -> tuple[Request, ...]:
        requests = _requests(connection, query)
        drop_buffers(connection, sum(unread.size for unread in page))
        return requests

    return store.read(work)


def drop_buffers(connection: Connection, size: int) -> None:
    """Close a connection after its transaction, where so many bytes went through it: it would keep room for them all.

    Both drivers do: libpq never shrinks its buffers, and Python's sqlite3 keeps the last values of a statement.
    """
    if size > BUFFER_BYTES:
        connection.detach()


def _requests(connection: Connection, query: Any) -> tuple[Request, ...]:
    return tuple(
        Request(seq=found.seq, line=found.line, custom_id=found.custom_id, body=bytes(found.body))
        for found in connection.execute(query.order_by(REQUEST.c.seq), execution_options={READS_BODIES: True})
    )
