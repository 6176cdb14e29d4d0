"""What reads a part of a batch reads that part of its results alone, whatever way PostgreSQL joins the two."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from sqlalchemy import Connection, event, text

from tests.rigs.filling import answers_to, claim, take_in, worker
from vbatch.store import Store, bodies, failures, queue, results, reuse
from vbatch.store.tables import CHUNK, SUCCEEDED

Statement = tuple[str, dict[str, Any]]


@contextmanager
def statements(store: Store) -> Iterator[list[Statement]]:
    """Collect what the store asks the driver."""
    asked: list[Statement] = []

    def collect(_c: object, _cursor: object, statement: str, parameters: dict[str, Any], *_: object) -> None:
        asked.append((statement, parameters))

    event.listen(store._engine, "before_cursor_execute", collect)
    try:
        yield asked
    finally:
        event.remove(store._engine, "before_cursor_execute", collect)


def merged(store: Store, statement: str, parameters: dict[str, Any]) -> list[str]:
    """Return the conditions by which the results are found where both tables are merged."""

    def work(connection: Connection) -> list[str]:
        for way in ("nestloop", "hashjoin", "seqscan", "bitmapscan", "material", "sort"):
            connection.exec_driver_sql(f"SET LOCAL enable_{way} = off")
        rows = connection.exec_driver_sql(f"EXPLAIN {statement}", parameters)
        plan = [str(row[0]).strip() for row in rows]
        assert any("Merge" in line for line in plan), plan
        return [
            plan[number + 1] for number, line in enumerate(plan) if "Index" in line and " on result" in line
        ]

    return store.read(work)


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_results_of_other_requests_are_not_read(store: Store) -> None:
    """Each page of a file read the results of the batch from the first on: one behind 1,000,000 requests took a second.

    Mutant: ranges.with_results without the range.
    """
    batch = take_in(store, 300)
    who = worker(store)
    (lease,) = claim(store, who)
    queue.flush(store, worker=who, results=answers_to(lease)[:100])
    store.write(lambda connection: connection.execute(text("ANALYZE")))
    chunk = store.read(
        lambda connection: connection.execute(CHUNK.select().where(CHUNK.c.number == lease.key.number)).one()
    )
    readers: list[Callable[[], object]] = [
        lambda: list(results.in_file_order(store, pk=batch.pk)),
        lambda: list(results.failed_requests(store, pk=batch.pk)),
        lambda: list(results.cut_off_requests(store, pk=batch.pk)),
        lambda: failures.failure_codes(store, pk=batch.pk),
        lambda: list(
            reuse.requests(store, batch.pk, reuse.Span(first=0, last=255), digest=_digest, having=SUCCEEDED)
        ),
        lambda: store.read(lambda connection: bodies.open_requests(connection, chunk, room=1 << 20)),
    ]
    for number, reader in enumerate(readers):
        with statements(store) as asked:
            reader()
        joins = [one for one in asked if "JOIN result" in one[0]]
        assert joins or number == 3, number
        for statement, parameters in joins:
            found = merged(store, statement, parameters)
            assert found, statement
            assert all("seq >" in condition for condition in found), (statement, found)


def _digest(_custom_id: str, body: bytes) -> bytes:
    return body
