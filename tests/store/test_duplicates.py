"""Identical requests run once, and each ends with exactly one outcome, whatever happens in between."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.rigs.filling import ENDPOINT, answers_to, claim, code_of, new_batch, rows, worker
from vbatch import batches
from vbatch.batches import RetryOptions
from vbatch.batches.dedupe import adding, answers_alike
from vbatch.batches.prefix_order import WINDOW_LINES, PrefixOrder
from vbatch.errors import NoSuchBatch
from vbatch.protocol import BatchStatus
from vbatch.store import (
    Store,
    blocked,
    catalog,
    duplicates,
    finalization,
    ingest,
    overview,
    queue,
    registry,
    results,
)
from vbatch.store.records import DEDUPE, Batch, BlockedModel
from vbatch.system import processes

OLD = processes.current()


def take_in(store: Store, folder: Path, count: int, *, kinds: int, **body: Any) -> Batch:
    """Store so many requests of so few bodies, at temperature 0."""
    new = new_batch(
        output_path=str(folder / "out.jsonl"),
        error_path=str(folder / "err.jsonl"),
        metadata={DEDUPE: "true"},
    )
    with ingest.ingest(store, new=new, submitter=OLD) as storing:
        order = PrefixOrder(storing)
        with adding(order, dedupe=True) as add:
            for line in range(1, count + 1):
                said = b'{"temperature": 0, "model": "m", "n": %d}' % (line % kinds)
                add([(b"", line, f"r-{line}", said)], "m", ENDPOINT)
        order.finish()
        return storing.accept(endpoint=ENDPOINT, input_sha256="sha")


def run(store: Store, *, chunks: int = 99, status: int = 200, most: int | None = None) -> list[str]:
    """Answer what is ready, each body with the custom_id of the request that ran; return those."""
    who = worker(store)
    ran: list[str] = []
    for lease in claim(store, who, chunks=chunks):
        for request in lease.requests[:most]:
            queue.flush(
                store, worker=who, results=answers_to(lease, [request], status=status, text=request.custom_id)
            )
            ran.append(request.custom_id)
    return ran


def outcomes(store: Store, batch: Batch) -> dict[str, Any]:
    """By custom_id, the body of the answer, or the code of the failure."""
    return {
        each.custom_id: (each.outcome.body if each.outcome and each.outcome.body else code_of(each))
        for each in results.finished(store, pk=batch.pk)
    }


def test_nothing_but_duplicates_behind_a_whole_window(store: Store) -> None:
    """Mutant: an empty list of requests waits to be put into order, which ends in an IndexError."""
    unique = [
        (b"", line, f"r-{line}", b'{"temperature": 0, "n": %d}' % line) for line in range(1, WINDOW_LINES + 1)
    ]
    with ingest.ingest(store, new=new_batch(), submitter=OLD) as storing:
        order = PrefixOrder(storing)
        with adding(order, dedupe=True) as add:
            add(unique, "m", ENDPOINT)
            add([(b"", WINDOW_LINES + 1, "again", unique[0][3])], "m", ENDPOINT)
        order.finish()
        assert storing.total == WINDOW_LINES + 1


@pytest.mark.parametrize(
    ("url", "body", "alike"),
    [
        (ENDPOINT, b'{"temperature": 0}', True),
        (ENDPOINT, b'{"temperature": 0.0, "seed": null}', True),
        (ENDPOINT, b'{"temperature": 1, "seed": 7}', True),
        (ENDPOINT, b'{"temperature": 0.1}', False),
        (ENDPOINT, b"{}", False),
        (ENDPOINT, b'{"temperature": "0"}', False),
        ("/v1/embeddings", b"{}", True),
    ],
)
def test_what_may_be_taken_together(url: str, body: bytes, alike: bool) -> None:
    """Mutant: a body without a temperature: vLLM then takes the model's own, which is seldom 0."""
    assert answers_alike(url, body) is alike


@pytest.mark.parametrize("status", [200, 400])
def test_each_body_runs_once_and_each_request_has_its_line(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    """Failures too. Mutants: duplicates are ready; only answers of 2xx are copied; chunks wait for ever; the room
    that copies take is not counted."""
    monkeypatch.setattr(ingest, "CHUNK_REQUESTS", 4)
    batch = take_in(store, tmp_path, 30, kinds=3)
    assert duplicates.waiting(store, pk=batch.pk) == 27
    assert batches.status(store, batch.id).duplicates == 27
    assert overview.bytes_to_come(store) == 30 * overview.GUESSED_ANSWER * 2
    assert run(store, status=status) == ["r-1", "r-2", "r-3"]
    assert run(store) == []
    assert len(outcomes(store, batch)) == 3  # the others have theirs at the end
    ended = batches.finalize(store, catalog.by_pk(store, pk=batch.pk), by=worker(store, pid=2))
    assert ended is not None
    assert ended.status is BatchStatus.COMPLETED
    expected = {f"r-{line}": b'"r-%d"' % ((line - 1) % 3 + 1) for line in range(1, 31)}
    assert outcomes(store, batch) == expected
    good = 30 if status == 200 else 0
    assert (ended.counts.completed, ended.counts.failed) == (good, 30 - good)
    path = tmp_path / ("out.jsonl" if good else "err.jsonl")
    ids = [line.split('"custom_id":"')[1].split('"')[0] for line in path.read_text().splitlines()]
    assert ids == [f"r-{line}" for line in range(1, 31)]
    assert len(list(batches.records(store, batch.id))) == 30
    assert rows(store, "SELECT DISTINCT state FROM chunk") == [("done",)]
    if not good:
        again = batches.retry(store, batch.id)
        assert (again.counts.total, duplicates.waiting(store, pk=again.pk)) == (30, 27)


def test_a_copy_that_is_interrupted_is_repeated(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another process finalizes, and every request has one outcome."""
    monkeypatch.setattr(ingest, "CHUNK_REQUESTS", 4)
    monkeypatch.setattr(duplicates, "WRITE_CHUNKS", 2)
    batch = take_in(store, tmp_path, 30, kinds=3)
    run(store)
    write, writes = store.write, []

    def killed(work: Any) -> Any:
        writes.append(work)
        if len(writes) == 4:  # one that takes the batch, two copies
            write(work)
            raise KeyboardInterrupt
        return write(work)

    with monkeypatch.context() as patch:
        patch.setattr(store, "write", killed)
        with pytest.raises(KeyboardInterrupt):
            batches.finalize(store, batch, by=worker(store, pid=2))
    assert 0 < duplicates.waiting(store, pk=batch.pk) < 27
    duplicates.answer(store, pk=batch.pk, ended=False)
    duplicates.answer(store, pk=batch.pk, ended=True)
    counts = catalog.by_pk(store, pk=batch.pk).counts
    assert (counts.completed, counts.failed, len(outcomes(store, batch))) == (30, 0, 30)


def test_cancelled_in_the_middle(store: Store, tmp_path: Path) -> None:
    """What has an answer gives it; the others are cancelled as their first is.

    Mutants: they stay without a line; the counts of a copy are added to those of the one before.
    """
    batch = take_in(store, tmp_path, 30, kinds=3)
    assert run(store, most=1) == ["r-1"]
    for _ in range(2):
        duplicates.answer(store, pk=batch.pk, ended=False)
        assert catalog.by_pk(store, pk=batch.pk).counts.completed == 10
    finalization.request_cancel(store, pk=batch.pk)
    ended = batches.finalize(store, catalog.by_pk(store, pk=batch.pk), by=worker(store, pid=2))
    assert ended is not None
    assert ended.status is BatchStatus.CANCELLED
    found = outcomes(store, batch)
    assert found == {f"r-{line}": b'"r-1"' if line % 3 == 1 else "batch_cancelled" for line in range(1, 31)}
    assert ended.counts.completed == 10
    again = batches.retry(store, batch.id)
    assert again.counts.total == 20


def test_a_blocked_model_takes_its_duplicates_along(store: Store, tmp_path: Path) -> None:
    """Mutant: ``take_out`` leaves them: they end as failed in the old batch and are in no other."""
    batch = take_in(store, tmp_path, 30, kinds=3)
    assert run(store, most=1) == ["r-1"]
    for one in registry.live(store):
        registry.stop(store, worker=one.id)
    gone = BlockedModel(
        configuration="c", model="m", url="", host="here", reason="gone", hint=None, since=batch.created_at
    )
    blocked.record(store, gone)
    again = batches.retry(store, batch.id, RetryOptions(model="other", output=tmp_path / "again.jsonl"))
    assert again.counts.total == 20
    old = outcomes(store, batch)
    assert {custom_id for custom_id, found in old.items() if found == b'"r-1"'} == {
        f"r-{line}" for line in range(1, 31, 3)
    }
    assert sorted(old.values(), key=str).count("submitted_again") == 20


def test_a_deleted_batch_has_nothing_to_copy(store: Store, tmp_path: Path) -> None:
    batch = take_in(store, tmp_path, 6, kinds=2)
    run(store)
    batches.finalize(store, batch, by=worker(store, pid=2))
    catalog.delete_batch(store, pk=batch.pk)
    duplicates.answer(store, pk=batch.pk, ended=True)
    with pytest.raises(NoSuchBatch):
        catalog.by_pk(store, pk=batch.pk)
