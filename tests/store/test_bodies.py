"""Large bodies of a leased chunk are read a page at a time, whatever the chunk was cut by."""

from __future__ import annotations

import pytest
from sqlalchemy import event

from tests.rigs.filling import answers_to, claim, rows, take_in, worker
from vbatch.store import Store, bodies, catalog, file_order, ingest, queue, results

BODY = b"0123456789"


@pytest.fixture(autouse=True)
def chunks_of_any_size(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut chunks as vbatch 0.1 did: by the number of requests alone."""
    monkeypatch.setattr(ingest, "CHUNK_BYTES", 1 << 60)


def test_a_lease_brings_the_bodies_that_there_is_room_for(store: Store) -> None:
    """A chunk from before chunks were cut by bytes may hold gigabytes.

    Mutants: queue.claim that reads each chunk whole; one that gives each of several chunks the whole room.
    """
    take_in(store, 300, body=BODY)
    first, second = claim(store, worker(store), chunks=2, room=25)
    assert [request.body for request in first.requests] == [BODY, BODY]
    assert [unread.size for unread in first.unread] == [10] * 254
    assert (second.requests, len(second.unread)) == ((), 44)
    seqs = [request.seq for request in first.requests] + [unread.seq for unread in first.unread]
    assert seqs == list(range(256))


def test_what_fits_exactly_is_read(store: Store) -> None:
    take_in(store, 3, body=BODY)
    (lease,) = claim(store, worker(store), room=30)
    assert (len(lease.requests), lease.unread) == (3, ())


def test_without_room_a_lease_has_no_bodies(store: Store) -> None:
    take_in(store, 3, body=BODY)
    (lease,) = claim(store, worker(store), room=0)
    assert (lease.requests, len(lease.unread)) == ((), 3)


def test_the_rest_is_read_page_by_page(store: Store) -> None:
    """Mutant: bodies.read that reads the requests between the first and the last one, those with a result too."""
    take_in(store, 6, body=BODY)
    who = worker(store)
    (lease,) = claim(store, who)
    queue.flush(store, worker=who, results=answers_to(lease, [lease.requests[2]]))
    queue.release(store, worker=who, keys=[lease.key])
    (again,) = claim(store, who, room=10)
    assert [request.line for request in again.requests] == [1]
    assert [unread.seq for unread in again.unread] == [1, 3, 4, 5]
    page = bodies.read(store, again, again.unread[:3])
    assert [(request.line, request.custom_id, request.body) for request in page] == [
        (2, "r-2", BODY),
        (4, "r-4", BODY),
        (5, "r-5", BODY),
    ]


def test_bodies_of_a_deleted_batch_are_missing(store: Store) -> None:
    batch = take_in(store, 3, body=BODY)
    (lease,) = claim(store, worker(store), room=0)
    catalog.remove_rows(store, batch.pk)
    assert bodies.read(store, lease, lease.unread) == ()
    assert rows(store, "SELECT count(*) FROM request") == [(0,)]


def test_a_connection_that_had_a_large_body_is_closed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would keep its buffers. Mutants: queue.flush, bodies.read, file_order._bodies_of without drop_buffers."""
    closed: list[object] = []
    event.listen(store._engine, "close_detached", closed.append)
    batch = take_in(store, 2, body=BODY)
    who = worker(store)
    (lease,) = claim(store, who)
    (without,) = claim(store, who, room=0)
    assert not closed
    monkeypatch.setattr(bodies, "BUFFER_BYTES", 5)
    monkeypatch.setattr(file_order, "SMALL", 5)
    assert len(bodies.read(store, without, without.unread)) == 2
    assert len(closed) == 1
    answers = answers_to(lease, text="an answer that is large enough")
    assert queue.flush(store, worker=who, results=answers).recorded == 2
    assert len(closed) == 2
    found = [answer.outcome.body for answer in results.finished(store, pk=batch.pk) if answer.outcome]
    assert found == [answer.outcome.body for answer in answers]
    assert len(closed) == 3
