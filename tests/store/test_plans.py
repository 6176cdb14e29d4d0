"""What a worker does all night never scans a table: asked of the databases, for the very statements executed.

The store holds thousands of finished batches and chunks, and one batch that is worked on.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Any

import psycopg
import pytest
from sqlalchemy import Connection, Table, event, insert

from tests.rigs.filling import answers_to, claim, take_in, take_in_groups, worker
from vbatch.store import Store, catalog, crashes, failures, finalization, overview, queue, registry, results
from vbatch.store.records import Lease
from vbatch.store.tables import BATCH, CHUNK, REQUEST, RESULT, WORKER

FINISHED_BATCHES = 3000
CHUNKS_EACH = 20  # of one request, so that the tables of requests and results are long as well


@dataclass
class Busy:
    """A store with a long past, and a worker in the middle of a batch."""

    store: Store
    who: str
    pk: int
    lease: Lease


@pytest.fixture
def busy(store: Store) -> Busy:
    store.write(_write_the_past)
    batch = take_in(store, 3000)
    take_in_groups(store, [1, 2] * 300, each=1, priority=-1)
    who = worker(store)
    (lease,) = claim(store, who)
    queue.flush(store, worker=who, results=answers_to(lease, lease.requests[:100]))
    store.write(lambda connection: connection.exec_driver_sql("ANALYZE"))
    return Busy(store, who, batch.pk, lease)


def _write_the_past(connection: Connection) -> None:
    now = datetime.now(UTC)
    pks = range(1, FINISHED_BATCHES + 1)
    seqs = range(CHUNKS_EACH)
    _insert(
        connection,
        BATCH,
        {"id": "batch_{pk}", "status": "completed", "endpoint": "/v1", "model": "m", "priority": 0, "metadata": {},
         "input_sha256": "sha", "output_path": "/o", "error_path": "/e", "total": CHUNKS_EACH,
         "created_at": now},
        [{"pk": pk, "id": f"batch_{pk}", "input_sha256": f"sha{pk}"} for pk in pks],
    )  # fmt: skip
    _insert(
        connection,
        CHUNK,
        {"model": "m", "url": "/v1", "priority": 0, "state": "done", "epoch": 1, "worker": "gone", "total": 1,
         "completed": 1},
        [{"batch": pk, "number": seq, "first_seq": seq, "last_seq": seq} for pk in pks for seq in seqs],
    )  # fmt: skip
    _insert(
        connection,
        REQUEST,
        {"custom_id": "r", "body": b"{}"},
        [{"batch": pk, "seq": seq, "line": seq + 1} for pk in pks for seq in seqs],
    )
    _insert(
        connection,
        RESULT,
        {
            "epoch": 1,
            "status_code": 200,
            "body": b"{}",
            "prompt_tokens": 1,
            "completion_tokens": 1,
            "attempts": 1,
        },
        [{"batch": pk, "seq": seq} for pk in pks for seq in seqs],
    )
    _insert(
        connection,
        WORKER,
        {"host": "h", "boot_id": "b", "pid_namespace": 1, "pid": 1, "start_ticks": 1, "engine": "echo", "heartbeat": 1,
         "started_at": now, "heartbeat_at": now, "stopped_at": now},
        [{"id": f"worker_{number}"} for number in range(FINISHED_BATCHES)],
    )  # fmt: skip
    if connection.dialect.name == "postgresql":
        connection.exec_driver_sql(f"SELECT setval('batch_pk_seq', {FINISHED_BATCHES})")


def _insert(
    connection: Connection, table: Table, same: dict[str, Any], different: list[dict[str, Any]]
) -> None:
    connection.execute(insert(table), [same | values for values in different])


@contextmanager
def statements_of(store: Store) -> Iterator[list[tuple[str, Any]]]:
    """Record every statement that is executed, with its parameters."""
    seen: list[tuple[str, Any]] = []

    def record(
        _connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, many: bool
    ) -> None:
        if not many and statement.split(maxsplit=1)[0] in ("SELECT", "UPDATE", "DELETE"):
            seen.append((statement, parameters))

    event.listen(store._engine, "before_cursor_execute", record)
    try:
        yield seen
    finally:
        event.remove(store._engine, "before_cursor_execute", record)


def scans(store: Store, statement: str, parameters: Any) -> list[str]:
    """Return the tables that a statement reads from end to end, each in the database's own words."""

    def work(connection: Connection) -> list[str]:
        if store.file is not None:
            plan = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", parameters)
            steps = [str(step.detail) for step in plan]
            return [step for step in steps if step.split()[0] == "SCAN" and _is_long(step)]
        # As the server plans it for any parameters: what it does once a statement has been executed five times.
        numbers = count(1)
        generic = re.sub(r"%\(\w+\)s", lambda _: f"${next(numbers)}", statement)
        driver = connection.connection.driver_connection
        assert isinstance(driver, psycopg.Connection)
        ((plan,),) = driver.execute(f"EXPLAIN (FORMAT JSON, GENERIC_PLAN) {generic}").fetchall()
        return [node["Relation Name"] for node in _nodes(plan[0]["Plan"]) if node["Node Type"] == "Seq Scan"]

    return store.read(work)


def _is_long(step: str) -> bool:
    """Whether SQLite reads a table, not a subquery, nor a partial index: that holds only what is unfinished."""
    return step.split()[1] in ("batch", "chunk", "request", "result", "worker") and "INDEX ix_" not in step


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for inner in plan.get("Plans", ()):
        yield from _nodes(inner)


OPERATIONS: dict[str, Callable[[Busy], object]] = {
    "waiting": lambda busy: queue.waiting(busy.store),
    "claim": lambda busy: claim(busy.store, busy.who, chunks=3),
    "claim of a group": lambda busy: [claim(busy.store, busy.who, chunks=20) for _ in range(2)],
    "flush": lambda busy: queue.flush(
        busy.store, worker=busy.who, results=answers_to(busy.lease, busy.lease.requests[100:200])
    ),
    "held_by": lambda busy: queue.held_by(busy.store, worker=busy.who),
    "release": lambda busy: queue.release(busy.store, worker=busy.who, keys=[busy.lease.key]),
    "reclaim": lambda busy: crashes.reclaim(busy.store, worker=busy.who, heartbeat=None, vanished=True),
    "heartbeat": lambda busy: registry.heartbeat(busy.store, worker=busy.who, models=["m"], note=None),
    "live": lambda busy: registry.live(busy.store),
    "working_on": lambda busy: registry.working_on(busy.store, pk=busy.pk),
    "to_finalize": lambda busy: finalization.to_finalize(busy.store, by=busy.who),
    "start_finalizing": lambda busy: finalization.start_finalizing(busy.store, pk=busy.pk, by=busy.who),
    "expire": lambda busy: finalization.expire(busy.store, now=datetime.now(UTC)),
    "progress": lambda busy: catalog.progress(busy.store),
    "left": lambda busy: overview.left(busy.store),
    "request_cancel": lambda busy: finalization.request_cancel(busy.store, pk=busy.pk),
    "record_engine_crash": lambda busy: crashes.record_engine_crash(
        busy.store, worker=busy.who, suspects_of={busy.lease.key: [150, 151]}, cause="SIGSEGV"
    ),
    "finished": lambda busy: list(results.finished(busy.store, pk=busy.pk)),
    "failure_codes": lambda busy: failures.failure_codes(busy.store, pk=busy.pk),
    "find": lambda busy: catalog.find(busy.store, f"batch_{FINISHED_BATCHES}"),
}


def test_nothing_that_is_done_all_night_scans_a_table(busy: Busy) -> None:
    """Mutant: ``state = :state`` in place of the index's own words makes PostgreSQL scan in claim and waiting."""
    found: dict[str, list[str]] = {}
    for name, operation in OPERATIONS.items():
        with statements_of(busy.store) as seen:
            operation(busy)
        assert seen, name
        for statement, parameters in seen:
            if scanned := scans(busy.store, statement, parameters):
                found.setdefault(name, []).append(f"{scanned}: {statement}")
    assert found == {}


PAGES: dict[str, Callable[[Store, int], object]] = {
    "the output file": lambda store, pk: list(results.in_file_order(store, pk=pk)),
    "what is retried": lambda store, pk: list(results.failed_requests(store, pk=pk)),
    "bodies of a lease": lambda store, _pk: claim(store, worker(store), chunks=3),
    "its results": lambda store, pk: list(results.finished(store, pk=pk)),
}


def test_a_page_is_read_by_key_where_the_server_has_not_counted_the_tables(postgresql_url: str) -> None:
    """As after a restore: then 100,000 answers were read at 1,500/s, for each page sorted all of them.

    Mutant: without ``enable_hashjoin`` and ``enable_bitmapscan`` in SETTINGS.
    """
    with closing(Store(postgresql_url)) as store:
        store.write(_count_nothing)
        batch = take_in(store, 20_000, body=b'{"prompt":"%s"}' % (b"x" * 600))
        for lease in claim(store, who := worker(store), chunks=70):
            queue.flush(store, worker=who, results=answers_to(lease, lease.requests))
        used = {}
        for name, operation in PAGES.items():
            with statements_of(store) as seen:
                operation(store, batch.pk)
            used[name] = {node for each in seen for node in store.read(partial(_nodes_of, *each))}

    assert all("Index Scan" in nodes for nodes in used.values())
    others = {"Hash Join", "Bitmap Heap Scan", "Seq Scan"}
    assert {name: nodes & others for name, nodes in used.items() if nodes & others} == {}


def _count_nothing(connection: Connection) -> None:
    for table in (REQUEST, RESULT):
        connection.exec_driver_sql(f"ALTER TABLE {table.name} SET (autovacuum_enabled = off)")


def _nodes_of(statement: str, parameters: Any, connection: Connection) -> list[str]:
    """Return the types of what a plan consists of, where it reads bodies."""
    if "request" not in statement and "result" not in statement:
        return []
    ((plan,),) = connection.exec_driver_sql(f"EXPLAIN (FORMAT JSON) {statement}", parameters).all()
    return [node["Node Type"] for node in _nodes(plan[0]["Plan"])]
