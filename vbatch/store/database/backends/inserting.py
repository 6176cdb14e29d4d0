"""Insert very many rows into SQLite, in a thread beside what makes the rows.

SQLite works without the interpreter's lock, and so do the syncs of a commit. Two things cost more than they should: one
call for each row (2.4 µs of CPU a row, 1.5 in statements of 100 or more), and to wait for the lock: a thread that wants
it back gets it from a busy one after 5 ms. So a statement inserts thousands of rows, and few of them wait.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from itertools import chain

from sqlalchemy import Connection, Table

from vbatch.store.database.backends.protocol import BulkInsert, Row, Write

BULK_BYTES = 24 << 20  # of bodies in one transaction: each costs three syncs
BULK_ROWS = 2000  # in one statement: SQLite takes 32,766 values, and a row has 5


@contextmanager
def inserting(write: Write, table: Table) -> Iterator[BulkInsert]:
    """Insert in large transactions, one at a time, each durable once it has ended and safe to replay.

    What a transaction raises is raised by the call after it. None is under way any more when the block has ended,
    however it ended: rows that come in after their batch was taken back would stay.
    """
    columns = ", ".join(table.columns.keys())
    row = f"({', '.join('?' * len(table.columns))})"
    single = f"INSERT OR IGNORE INTO {table.name} ({columns}) VALUES {row}"
    many = single + f", {row}" * (BULK_ROWS - 1)

    def insert(connection: Connection, rows: list[Row]) -> None:
        full = len(rows) - len(rows) % BULK_ROWS
        for first in range(0, full, BULK_ROWS):
            values = tuple(chain.from_iterable(rows[first : first + BULK_ROWS]))
            connection.exec_driver_sql(many, values)
        if full < len(rows):
            connection.exec_driver_sql(single, rows[full:])

    with ThreadPoolExecutor(1, thread_name_prefix="inserting") as thread:
        under_way: list[Future[None]] = []

        def wait() -> None:
            if under_way:
                under_way.pop().result()

        def write_rows(rows: list[Row]) -> None:
            wait()
            under_way.append(thread.submit(write, partial(insert, rows=rows)))

        yield BulkInsert(write=write_rows, write_bytes=BULK_BYTES, close=wait)
