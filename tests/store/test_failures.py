"""Failures are reported kind by kind, at the cost of what failed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tests.rigs.filling import answers_to, claim, fail_waiting, take_in, worker
from tests.store.test_plans import statements_of
from vbatch.store import Store, catalog, failures, queue


def test_failures_are_grouped_the_most_frequent_first(store: Store) -> None:
    batch = take_in(store, ["m"] * 10 + ["broken"] * 3)
    who = worker(store)
    (lease,) = claim(store, who)
    results = answers_to(lease, lease.requests[:1]) + answers_to(lease, lease.requests[1:6], status=400)
    queue.flush(store, worker=who, results=results + answers_to(lease, lease.requests[6:], status=500))
    fail_waiting(store, model="broken", message="too big")
    groups = failures.failure_codes(store, pk=batch.pk)
    assert [(group.code, group.status_code, group.count, group.custom_id) for group in groups] == [
        ("http_400", 400, 5, "r-2"),
        ("http_500", 500, 4, "r-7"),
        ("model_not_loaded", None, 3, "r-11"),
    ]
    assert groups[0].message == "2"
    assert groups[2].message == "too big"


def test_failures_of_many_chunks_add_up_and_good_chunks_are_not_read(store: Store) -> None:
    """Mutant: grouping all results of the batch in one read (3.4 s for one failure among 300,000)."""
    batch = take_in(store, 256 * 40)
    who = worker(store)
    for number, lease in enumerate(claim(store, who, chunks=40)):
        bad = lease.requests[:2] if number % 2 else ()
        results = [
            replace(result, outcome=result.outcome._replace(attempts=3))
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
    fail_waiting(store, model="m", message="too big")
    groups = {
        group.code: (group.count, group.custom_id) for group in failures.failure_codes(store, pk=batch.pk)
    }
    assert groups == {"model_not_loaded": (7, "r-4"), "http_400": (2, "r-1")}
    assert catalog.find(store, batch.id).counts.failed == 9


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error": {"message": "no"}}', "no"),
        (b'{"error": "no"}', "no"),
        (b'{"message": "no"}', "no"),
        (b'["no"]', '["no"]'),
        (b'{"error": {"message": "a long one", "par', "a long one"),
        (b"<html>", "<html>"),
        (None, ""),
    ],
)
def test_the_engines_words_are_found(body: bytes | None, message: str) -> None:
    assert failures.error_message(body) == message


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("max_tokens=17 is too large", "max_tokens=4096 is too large", True),
        ("the model 'a' does not exist", "the model 'b' does not exist", True),
        ("request chatcmpl-0123456789abcdef failed", "request chatcmpl-fedcba9876543210 failed", True),
        ("temperature must be non-negative", "top_p must be in (0, 1]", False),
    ],
)
def test_messages_of_one_cause_differ_in_numbers_and_quotes(one: str, other: str, alike: bool) -> None:
    assert (failures.mask(one) == failures.mask(other)) is alike


def test_failures_with_one_code_are_told_apart_by_their_cause(store: Store) -> None:
    """Mutant: grouping by code alone; 18 failures with 17 causes look like one."""
    batch = take_in(store, 9)
    who = worker(store)
    (lease,) = claim(store, who)
    causes = (
        ["top_p must be positive"] + [f"{n} tokens are too many" for n in range(5)] + ["no such tool"] * 3
    )
    results = [
        replace(
            answer,
            outcome=answer.outcome._replace(body=json.dumps({"error": {"message": cause}}).encode()),
        )
        for answer, cause in zip(answers_to(lease, lease.requests, status=400), causes, strict=True)
    ]
    queue.flush(store, worker=who, results=results)
    groups = failures.failure_codes(store, pk=batch.pk)
    assert [(group.count, group.message, group.custom_id) for group in groups] == [
        (5, "0 tokens are too many", "r-2"),
        (3, "no such tool", "r-7"),
        (1, "top_p must be positive", "r-1"),
    ]


def test_a_million_messages_are_not_kept(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a dictionary that grows with every message."""
    monkeypatch.setattr(failures, "KINDS", 2)
    batch = take_in(store, 9)
    who = worker(store)
    (lease,) = claim(store, who)
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    results = [
        replace(answer, outcome=answer.outcome._replace(body=f'{{"message": "{word}"}}'.encode()))
        for answer, word in zip(answers_to(lease, lease.requests, status=400), words, strict=True)
    ]
    queue.flush(store, worker=who, results=results)
    assert sorted(group.count for group in failures.failure_codes(store, pk=batch.pk)) == [1, 1, 7]
