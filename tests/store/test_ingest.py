"""A batch is taken in whole, exact and in order, or leaves no trace."""

from __future__ import annotations

import multiprocessing
import os
import signal

import pytest

from tests.rigs.filling import ENDPOINT, NOBODY, claim, count, new_batch, rows, take_in, worker
from tests.rigs.waiting import until
from vbatch.errors import NoSuchBatch, StoreUnreachable
from vbatch.protocol import BatchStatus
from vbatch.store import Store, catalog, finalization, ingest, results, staging
from vbatch.store.database.backends import inserting, postgresql
from vbatch.store.records import CHUNK_REQUESTS, Batch
from vbatch.system import processes
from vbatch.system.processes import Liveness, ProcessIdentity

AWKWARD_IDS = ("plain", "quo'te", "tab\there", "new\nline", "émoji 🜚", "\\N", "x" * 3000, " ", "\x7f")
AWKWARD_BODIES = (b"{}", b'{"a": "\\u0000"}', "…é🜚".encode(), b"\x00\xff\\x\n\r\t", b"", b"x" * 100_000)


def take_in_awkward(store: Store) -> Batch:
    with ingest.ingest(store, new=new_batch(), submitter=processes.current()) as storing:
        for line, custom_id in enumerate(AWKWARD_IDS, start=1):
            storing.add(line * 10, custom_id, "m", AWKWARD_BODIES[line % len(AWKWARD_BODIES)])
        return storing.accept(endpoint=ENDPOINT, input_sha256="sha")


def test_rows_are_stored_to_the_byte(store: Store) -> None:
    batch = take_in_awkward(store)
    (lease,) = claim(store, worker(store))
    assert [
        (request.line, request.custom_id, request.body) for request in lease.requests
    ] == [
        (line * 10, custom_id, AWKWARD_BODIES[line % len(AWKWARD_BODIES)])
        for line, custom_id in enumerate(AWKWARD_IDS, start=1)
    ]  # fmt: skip
    assert batch.counts.total == len(AWKWARD_IDS)
    assert (batch.status, batch.endpoint, batch.model) == (BatchStatus.IN_PROGRESS, ENDPOINT, "m")


def test_every_field_of_the_batch_comes_back(store: Store) -> None:
    new = new_batch(name="naïve", priority=-3, metadata={"k": "v\n"}, input_path="/in.jsonl")
    with ingest.ingest(store, new=new, submitter=processes.current()) as storing:
        storing.add(1, "a", "m", b"{}")
        batch = storing.accept(endpoint=ENDPOINT, input_sha256="sha")
    assert batch == catalog.find(store, new.id)
    for field in ("name", "priority", "metadata", "input_path", "output_path", "error_path", "created_at"):
        assert getattr(batch, field) == getattr(new, field), field
    assert batch.input_sha256 == "sha"
    assert rows(store, "SELECT host FROM batch") == [(processes.current().host,)]
    assert batch.in_progress_at is not None
    assert batch.in_progress_at >= batch.created_at


def test_mixed_models_are_grouped_and_chunks_never_mix_them(store: Store) -> None:
    models = [f"model-{line % 3}" for line in range(1000)]
    take_in(store, models)
    found = rows(store, "SELECT model, first_seq, last_seq, total FROM chunk ORDER BY first_seq")
    assert sum(total for *_, total in found) == 1000
    for model, first, last, total in found:
        assert last - first + 1 == total <= CHUNK_REQUESTS
        lines = rows(
            store,
            "SELECT line FROM request WHERE seq BETWEEN :first AND :last ORDER BY seq",
            first=first,
            last=last,
        )
        assert {models[line - 1] for (line,) in lines} == {model}
        assert lines == sorted(lines)


def test_a_chunk_holds_at_most_256_requests(store: Store) -> None:
    take_in(store, 600)
    assert [total for (total,) in rows(store, "SELECT total FROM chunk ORDER BY number")] == [256, 256, 88]


def test_a_chunk_is_cut_at_16_mib(store: Store) -> None:
    take_in(store, 7, body=b"x" * (6 << 20))
    assert [total for (total,) in rows(store, "SELECT total FROM chunk ORDER BY number")] == [3, 3, 1]


def test_a_body_larger_than_a_whole_chunk_is_taken(store: Store) -> None:
    take_in(store, 2, body=b"x" * (20 << 20))
    leases = claim(store, worker(store), chunks=5)
    assert [len(request.body) for lease in leases for request in lease.requests] == [20 << 20] * 2


def test_nothing_is_visible_before_it_is_accepted(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (inserting, postgresql):
        monkeypatch.setattr(kind, "BULK_BYTES", 1)  # every row is written at once
    new = new_batch()
    with ingest.ingest(store, new=new, submitter=processes.current()) as storing:
        for line in range(1, 4):
            storing.add(line, f"r-{line}", "m", b"{}")
        assert catalog.recent(store, limit=5) == []
        assert claim(store, worker(store)) == []
        assert finalization.to_finalize(store, by="worker_x") == []
        with pytest.raises(NoSuchBatch):
            catalog.find(store, new.id)
        storing.accept(endpoint=ENDPOINT, input_sha256="sha")
    assert [batch.id for batch in catalog.recent(store, limit=5)] == [new.id]


def test_an_error_in_the_middle_leaves_no_row(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    for kind in (inserting, postgresql):
        monkeypatch.setattr(kind, "BULK_BYTES", 1)

    def interrupted() -> None:
        with ingest.ingest(store, new=new_batch(), submitter=processes.current()) as storing:
            storing.add(1, "a", "m", b"{}")
            storing.add(2, "b", "m", b"{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert [count(store, table) for table in ("batch", "request", "chunk")] == [0, 0, 0]


def test_what_ends_a_submit_is_told_though_it_cannot_be_taken_back(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: the store's own trouble in place of Ctrl-C; the file would then be read again, and accepted."""

    def unreachable(*_args: object) -> None:
        raise StoreUnreachable

    monkeypatch.setattr(staging, "withdraw", unreachable)

    def interrupted() -> None:
        with ingest.ingest(store, new=new_batch(), submitter=processes.current()) as storing:
            storing.add(1, "r-1", "m", b"{}")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()


def test_a_second_try_starts_from_nothing(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one could not take back what it had written, and the file was changed since.

    Mutant: no ``remove_requests``; PostgreSQL then refuses the same rows, SQLite keeps the old ones.
    """
    new = new_batch()

    def unreachable(*_args: object) -> None:
        raise StoreUnreachable

    def first() -> None:
        with ingest.ingest(store, new=new, submitter=processes.current()) as storing:
            storing.add(1, "r-1", "m", b"{old}")
            storing.accept(endpoint=ENDPOINT, input_sha256="old")
            storing.accepted = None  # its answer was lost
            raise StoreUnreachable

    with monkeypatch.context() as outage:
        outage.setattr(staging, "withdraw", unreachable)
        with pytest.raises(StoreUnreachable):
            first()
    with ingest.ingest(store, new=new, submitter=processes.current()) as storing:
        storing.add(1, "r-1", "m", b"{new}")
        storing.accept(endpoint=ENDPOINT, input_sha256="new")
    (lease,) = claim(store, worker(store))
    assert [request.body for request in lease.requests] == [b"{new}"]


def test_leaving_without_accepting_leaves_no_row(store: Store) -> None:
    with ingest.ingest(store, new=new_batch(), submitter=processes.current()) as storing:
        storing.add(1, "a", "m", b"{}")
    assert [count(store, table) for table in ("batch", "request", "chunk")] == [0, 0, 0]


def test_accepting_twice_is_accepting_once(store: Store) -> None:
    """The answer to the first COMMIT was lost: the transaction runs again."""
    with ingest.ingest(store, new=new_batch(), submitter=processes.current()) as storing:
        storing.add(1, "a", "m", b"{}")
        first = storing.accept(endpoint=ENDPOINT, input_sha256="sha")
        assert storing.accept(endpoint=ENDPOINT, input_sha256="sha") == first
    assert [count(store, table) for table in ("batch", "request", "chunk")] == [1, 1, 1]


def test_only_the_rows_of_dead_submitters_are_swept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inserting, "BULK_BYTES", 1)
    accepted = take_in(store, 3)
    with ingest.ingest(store, new=new_batch(), submitter=processes.current()) as storing:
        storing.add(1, "a", "m", b"{}")
        asked: list[ProcessIdentity] = []

        def none_is_gone(identity: ProcessIdentity) -> bool:
            asked.append(identity)
            return False

        assert staging.sweep(store, gone=none_is_gone) == 0
        assert asked == [processes.current()]
        storing.accept(endpoint=ENDPOINT, input_sha256="sha")
    staging.announce(store, new_batch(), NOBODY)
    assert staging.sweep(store, gone=lambda identity: identity == NOBODY) == 1
    assert count(store, "batch") == 2
    assert catalog.find(store, accepted.id) == accepted


def test_a_submit_that_ended_well_since_it_was_looked_at_is_not_swept(store: Store) -> None:
    """Mutant: ``hide`` that does not ask for the status; the accepted batch is then removed without a word."""
    with ingest.ingest(store, new=new_batch(), submitter=processes.current()) as storing:
        storing.add(1, "a", "m", b"{}")

        def ends_meanwhile(_: ProcessIdentity) -> bool:
            storing.accept(endpoint=ENDPOINT, input_sha256="sha")
            return True

        assert staging.sweep(store, gone=ends_meanwhile) == 0
    assert [count(store, table) for table in ("batch", "request", "chunk")] == [1, 1, 1]


def test_a_delete_that_goes_on_leaves_the_next_batch_alone(store: Store) -> None:
    """Another process finished the delete, and a new batch was submitted. Mutant: SQLite without AUTOINCREMENT."""
    old = take_in(store, 3)
    assert catalog.hide(store, old.pk, was=old.status)
    assert staging.sweep(store, gone=lambda _: False) == 1
    new = take_in(store, 5)
    catalog.remove_rows(store, old.pk)
    assert catalog.find(store, new.id) == new
    assert count(store, "request") == 5


def _submit_for_ever(url: str) -> None:
    inserting.BULK_BYTES = postgresql.BULK_BYTES = 1 << 16
    store = Store(url)
    with ingest.ingest(store, new=new_batch(), submitter=processes.current()) as storing:
        line = 0
        while True:
            line += 1
            storing.add(line, f"r-{line}", "m", b"x" * 700)


def test_a_killed_submitter_leaves_nothing_visible_and_is_swept(store: Store) -> None:
    """Mutant: ``sweep`` that trusts a pid alone keeps the rows for ever."""
    url = store.url.render_as_string(hide_password=False)
    submitter = multiprocessing.get_context("spawn").Process(target=_submit_for_ever, args=(url,))
    submitter.start()
    assert submitter.pid is not None
    if store.file is not None:  # on PostgreSQL the rows of an open transaction are not visible to others
        until(lambda: count(store, "request") > 500)
    else:
        until(lambda: count(store, "batch") == 1)
    os.kill(submitter.pid, signal.SIGKILL)
    submitter.join()
    assert catalog.recent(store, limit=5) == []
    assert claim(store, worker(store)) == []
    gone = staging.sweep(store, gone=lambda identity: processes.liveness(identity) is Liveness.GONE)
    assert gone == 1
    assert [count(store, table) for table in ("batch", "request", "chunk")] == [0, 0, 0]


def test_lines_come_back_in_file_order_whatever_the_models(store: Store) -> None:
    batch = take_in(store, [f"model-{line * 7 % 5}" for line in range(2500)])
    assert [answer.line for answer in results.in_file_order(store, pk=batch.pk)] == list(range(1, 2501))
