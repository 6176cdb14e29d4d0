"""Failures are reported kind by kind, at the cost of what failed."""

from __future__ import annotations

from dataclasses import replace

from tests.rigs.filling import answers_to, claim, take_in, worker
from tests.store.test_plans import statements_of
from vbatch.store import Store, catalog, crashes, failures, queue


def test_failures_are_grouped_the_most_frequent_first(store: Store) -> None:
    batch = take_in(store, ["m"] * 10 + ["broken"] * 3)
    who = worker(store)
    (lease,) = claim(store, who)
    results = answers_to(lease, lease.requests[:1]) + answers_to(lease, lease.requests[1:6], status=400)
    queue.flush(store, worker=who, results=results + answers_to(lease, lease.requests[6:], status=500))
    crashes.fail_model(store, worker=who, model="broken", code="model_not_loaded", message="too big")
    groups = failures.failure_codes(store, pk=batch.pk)
    assert [(group.code, group.status_code, group.count, group.custom_id) for group in groups] == [
        ("http_400", 400, 5, "r-2"),
        ("http_500", 500, 4, "r-7"),
        ("model_not_loaded", None, 3, "r-11"),
    ]
    assert groups[0].body == b'"2"'
    assert groups[2].message == "too big"


def test_failures_of_many_chunks_add_up_and_good_chunks_are_not_read(store: Store) -> None:
    """Mutant: grouping all results of the batch in one read (3.4 s for one failure among 300,000)."""
    batch = take_in(store, 256 * 40)
    who = worker(store)
    for number, lease in enumerate(claim(store, who, chunks=40)):
        bad = lease.requests[:2] if number % 2 else ()
        results = [
            replace(result, outcome=replace(result.outcome, attempts=3))
            for result in answers_to(lease, bad, status=503)
        ]
        queue.flush(store, worker=who, results=results + answers_to(lease, lease.requests[len(bad) :]))
    with statements_of(store) as seen:
        (group,) = failures.failure_codes(store, pk=batch.pk)
    assert (group.code, group.count, group.attempts, group.custom_id) == ("http_503", 40, 3, "r-257")
    assert sum("FROM result" in statement for statement, _ in seen) == 20


def test_failures_add_up_when_a_model_fails_in_the_middle_of_a_chunk(store: Store) -> None:
    """Mutant: counting a failed chunk's own failures counts its recorded ones twice."""
    batch = take_in(store, 10)
    who = worker(store)
    (lease,) = claim(store, who)
    results = answers_to(lease, lease.requests[:2], status=400) + answers_to(lease, lease.requests[2:3])
    queue.flush(store, worker=who, results=results)
    queue.release(store, worker=who, keys=[lease.key])
    crashes.fail_model(store, worker=who, model="m", code="model_not_loaded", message="too big")
    groups = {
        group.code: (group.count, group.custom_id) for group in failures.failure_codes(store, pk=batch.pk)
    }
    assert groups == {"model_not_loaded": (7, "r-4"), "http_400": (2, "r-1")}
    assert catalog.find(store, batch.id).counts.failed == 9
