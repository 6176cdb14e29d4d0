"""The answers of a batch come in file order, at any time, while the work continues."""

from __future__ import annotations

import random
import tracemalloc
from itertools import islice

import pytest

from tests.rigs.filling import answers_to, claim, code_of, fail_waiting, take_in, worker
from tests.store.test_plans import statements_of
from vbatch.errors import NoSuchBatch
from vbatch.store import Store, catalog, crashes, file_order, finalization, queue, results


@pytest.mark.parametrize("small", [0, 4, 1000])
def test_mixed_models_come_in_file_order_page_after_page(
    store: Store, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    """Mutant: of a request whose body is read later, the page of another one."""
    monkeypatch.setattr(file_order, "PAGE", 7)
    monkeypatch.setattr(file_order, "SMALL", small)
    dice = random.Random(1)
    models = [dice.choice("abc") for _ in range(500)]
    batch = take_in(store, models)
    who = worker(store)
    for model in "abc":
        for lease in claim(store, who, model=model, chunks=9):
            queue.flush(store, worker=who, results=answers_to(lease))
    found = list(results.in_file_order(store, pk=batch.pk))
    assert [answer.line for answer in found] == list(range(1, 501))
    assert [answer.custom_id for answer in found] == [f"r-{line}" for line in range(1, 501)]
    assert [answer.outcome.body for answer in found if answer.outcome] == [
        b'"%d"' % line for line in range(1, 501)
    ]


def test_finished_lines_are_whole_and_ordered_while_the_work_continues(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(file_order, "PAGE", 50)
    batch = take_in(store, 600)
    who = worker(store)
    first, second, third = claim(store, who, chunks=3)
    queue.flush(store, worker=who, results=answers_to(first))
    reading = results.finished(store, pk=batch.pk)
    begun = [answer.line for answer in islice(reading, 60)]
    queue.flush(store, worker=who, results=answers_to(third))  # no reader keeps a writer waiting
    queue.flush(store, worker=who, results=answers_to(second, second.requests[100:]))
    lines = begun + [answer.line for answer in reading]
    assert lines == sorted(set(lines))
    assert set(range(1, 257)) <= set(lines)
    assert [answer.line for answer in results.finished(store, pk=batch.pk)] == [
        *range(1, 257),
        *range(357, 601),
    ]


def test_small_answers_come_with_their_requests_and_large_ones_in_a_page(store: Store) -> None:
    """Mutants: a page of bodies is read where all are small; large ones come with their requests, 1,000 at once."""
    batch = take_in(store, 40)
    who = worker(store)
    (lease,) = claim(store, who)
    size = {request.line: 10 if request.line % 9 else file_order.SMALL + 1 for request in lease.requests}
    for request in lease.requests:
        text = "x" * (size[request.line] - 2)
        queue.flush(store, worker=who, results=answers_to(lease, [request], text=text))
    reading = results.finished(store, pk=batch.pk)
    with statements_of(store) as seen:
        found = [next(reading) for _ in range(40)]
    assert [len(answer.outcome.body or b"") if answer.outcome else 0 for answer in found] == list(
        size.values()
    )
    read = [statement for statement, _ in seen if "result.body" in statement]
    assert len(read) == 2, "the page, and the large ones of it"
    small = take_in(store, 3)
    (lease,) = claim(store, who, held=[lease.key])
    queue.flush(store, worker=who, results=answers_to(lease))
    with statements_of(store) as seen:
        assert len(list(results.finished(store, pk=small.pk))) == 3
    assert sum("result.body" in statement for statement, _ in seen) == 1


def test_nothing_is_finished_at_first(store: Store) -> None:
    batch = take_in(store, 3)
    assert list(results.finished(store, pk=batch.pk)) == []
    assert [answer.outcome for answer in results.in_file_order(store, pk=batch.pk)] == [None] * 3


def test_failed_requests_come_with_model_and_body(store: Store) -> None:
    batch = take_in(store, ["a", "b", "a", "b", "c"], body=b'{"exact" :  1}')
    who = worker(store)
    (lease_a,) = claim(store, who, model="a")
    (lease_b,) = claim(store, who, model="b")
    queue.flush(store, worker=who, results=answers_to(lease_a))
    queue.flush(store, worker=who, results=answers_to(lease_b, status=400))
    finalization.request_cancel(store, pk=batch.pk)
    failed = list(results.failed_requests(store, pk=batch.pk))
    assert [(request.line, request.custom_id, request.model, request.body) for request in failed] == [
        (2, "r-2", "b", b'{"exact" :  1}'),
        (4, "r-4", "b", b'{"exact" :  1}'),
        (5, "r-5", "c", b'{"exact" :  1}'),
    ]


def test_each_stopped_chunk_tells_its_own_reason(store: Store) -> None:
    batch = take_in(store, ["bad"] * 300 + ["good"] * 300)
    fail_waiting(store, model="bad", message="too big")
    who = worker(store)
    (lease,) = claim(store, who, model="good")
    queue.flush(store, worker=who, results=answers_to(lease, lease.requests[:10]))
    finalization.request_cancel(store, pk=batch.pk)
    codes = [code_of(answer) for answer in results.finished(store, pk=batch.pk)]
    assert codes == ["model_not_loaded"] * 300 + [None] * 10 + ["batch_cancelled"] * 290


def test_a_message_that_a_database_would_choke_on_is_made_harmless(store: Store) -> None:
    """An engine's last words may hold anything; they must not stop the flush that records them."""
    batch = take_in(store, 2)
    who = worker(store)
    for _ in range(4):
        for lease in claim(store, who):
            accused = {lease.key: [lease.requests[0].seq]}
            crashes.record_engine_crash(store, worker=who, suspects_of=accused, cause="bad\0byte \udcff")
    fail_waiting(store, model="m", message="bad\0byte \udcff")
    messages = {
        answer.outcome.error_message
        for answer in results.finished(store, pk=batch.pk)
        if answer.outcome is not None
    }
    assert all(message is not None and "bad\N{REPLACEMENT CHARACTER}byte" in message for message in messages)


def test_large_answers_are_read_a_few_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: a page of 1,000 whole answers; one whole page for each model of the file."""
    monkeypatch.setattr(file_order, "PAGE_BYTES", 4 << 20)
    batch = take_in(store, ["a", "b", "c", "d"] * 12)
    who = worker(store)
    for model in "abcd":
        for lease in claim(store, who, model=model):
            for request in lease.requests:
                result = answers_to(lease, [request], text=str(request.line) + "x" * (1 << 20))
                queue.flush(store, worker=who, results=result)
    tracemalloc.start()
    try:
        found = [
            (answer.line, len(answer.outcome.body or b"") if answer.outcome else 0)
            for answer in results.finished(store, pk=batch.pk)
        ]
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert [line for line, _ in found] == list(range(1, 49))
    assert all(size > 1 << 20 for _, size in found)
    assert peak < 16 << 20, f"{peak >> 20} MiB of 48 MiB"


@pytest.mark.parametrize("small", [0, 1000])
def test_one_answer_larger_than_a_page_is_read(
    store: Store, monkeypatch: pytest.MonkeyPatch, small: int
) -> None:
    monkeypatch.setattr(file_order, "PAGE_BYTES", 1)
    monkeypatch.setattr(file_order, "SMALL", small)
    batch = take_in(store, ["a", "b", "a"])
    who = worker(store)
    for model in "ab":
        for lease in claim(store, who, model=model):
            queue.flush(store, worker=who, results=answers_to(lease))
    bodies = [answer.outcome.body for answer in results.finished(store, pk=batch.pk) if answer.outcome]
    assert bodies == [b'"1"', b'"2"', b'"3"']


@pytest.mark.parametrize("small", [0, 1000])
def test_failed_requests_are_read_in_pages(store: Store, monkeypatch: pytest.MonkeyPatch, small: int) -> None:
    """Mutant: one query for the body of each failed request (150,000 of them took 45 s)."""
    monkeypatch.setattr(file_order, "SMALL", small)
    batch = take_in(store, 600, body=b'{"exact" :  1}')
    who = worker(store)
    for lease in claim(store, who, chunks=9):
        answered = answers_to(lease, lease.requests[::2], status=500) + answers_to(
            lease, lease.requests[1::2]
        )
        queue.flush(store, worker=who, results=answered)
    with statements_of(store) as seen:
        failed = list(results.failed_requests(store, pk=batch.pk))
    assert [request.line for request in failed] == list(range(1, 601, 2))
    assert {request.body for request in failed} == {b'{"exact" :  1}'}
    assert len(seen) < 20


def test_a_batch_that_is_deleted_while_it_is_read_is_reported(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: in_file_order ends without a last look at the batch; its reader takes half of it for all."""
    monkeypatch.setattr(file_order, "PAGE", 10)
    batch = take_in(store, 100)
    who = worker(store)
    for lease in claim(store, who):
        queue.flush(store, worker=who, results=answers_to(lease))
    finalization.start_finalizing(store, pk=batch.pk, by=who)
    finalization.finish(store, pk=batch.pk, by=who, output_path="/o", error_path="/e")
    reading = results.finished(store, pk=batch.pk)
    begun = list(islice(reading, 5))
    catalog.delete_batch(store, pk=batch.pk)
    with pytest.raises(NoSuchBatch):
        begun += reading
    assert len(begun) < 100
