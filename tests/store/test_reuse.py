"""A new batch takes over the answers that an earlier one has for the very same requests, and no others."""

from __future__ import annotations

import multiprocessing
import os
import signal
import tracemalloc
from collections.abc import Iterable, Sequence
from typing import Any

import pytest

from tests.rigs.filling import ENDPOINT, answers_to, claim, code_of, count, new_batch, rows, worker
from tests.rigs.waiting import until
from vbatch.protocol import BatchStatus
from vbatch.store import Store, catalog, file_order, finalization, ingest, queue, results, reuse, staging
from vbatch.store.records import Batch
from vbatch.system import processes
from vbatch.system.processes import Liveness

Line = tuple[str, str, bytes]  # custom_id, model, body


def lines(many: int, *, model: str = "m", body: bytes = b'{"body": %d}') -> list[Line]:
    return [(f"r-{number}", model, body % number) for number in range(many)]


def take_in(
    store: Store, of: Iterable[Line], *, earlier: Sequence[Batch] = (), endpoint: str = ENDPOINT
) -> Batch:
    with ingest.ingest(store, new=new_batch(), submitter=processes.current()) as storing:
        for line, (custom_id, model, body) in enumerate(of, start=1):
            storing.add(line, custom_id, model, body)
        return storing.accept(endpoint=endpoint, input_sha256="sha", earlier=earlier)


def work(store: Store, *, models: Iterable[str] = ("m",), status: int = 200, chunks: int = 99) -> list[str]:
    """Answer what is ready, each request with its own custom_id; return the custom_ids."""
    who = worker(store)
    answered: list[str] = []
    for model in models:
        for lease in claim(store, who, model=model, chunks=chunks):
            for request in lease.requests:
                given = answers_to(lease, [request], status=status, text=request.custom_id)
                queue.flush(store, worker=who, results=given)
                answered.append(request.custom_id)
    return answered


def found(store: Store, batch: Batch) -> dict[str, bytes | None]:
    return {
        entry.custom_id: entry.outcome.body
        for entry in results.finished(store, pk=batch.pk)
        if entry.outcome is not None
    }


def test_everything_unchanged_is_done_at_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: accept leaves the state of such a chunk ready."""
    monkeypatch.setattr(ingest, "CHUNK_REQUESTS", 4)
    first = take_in(store, lines(10))
    work(store)
    second = take_in(store, lines(10), earlier=[first])
    assert (second.counts.completed, second.counts.total, second.reused) == (10, 10, 10)
    assert (second.prompt_tokens, second.completion_tokens) == (20, 30)
    assert queue.waiting(store) == []
    assert {batch.id for batch in finalization.to_finalize(store, by="me")} == {first.id, second.id}
    assert list(results.in_file_order(store, pk=second.pk))[3].outcome is not None
    assert found(store, second) == found(store, first)
    copied = (
        "SELECT seq, status_code, request_id, body, prompt_tokens, attempts FROM result WHERE batch = :pk"
    )
    assert rows(store, copied, pk=second.pk) == rows(store, copied, pk=first.pk)


def test_large_requests_are_compared_a_few_at_a_time(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: reading all requests of a chunk at once."""
    monkeypatch.setattr(file_order, "PAGE_BYTES", 4 << 20)
    large = lines(32, body=b'{"body": %d' + b" " * (1 << 20) + b"}")
    first = take_in(store, large)
    work(store)
    with ingest.ingest(store, new=new_batch(), submitter=processes.current()) as storing:
        for line, (custom_id, model, body) in enumerate(large, start=1):
            storing.add(line, custom_id, model, body)
        del large, body
        tracemalloc.start()
        try:
            second = storing.accept(endpoint=ENDPOINT, input_sha256="s", earlier=[first])
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert second.reused == 32
    assert peak < 16 << 20, f"{peak >> 20} MiB of 32 MiB"


def test_only_what_is_new_or_changed_runs(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: bodies.open_requests looks at results only after a first lease; _digest without the body."""
    monkeypatch.setattr(ingest, "CHUNK_REQUESTS", 4)
    first = take_in(store, lines(8))
    work(store)
    edited = lines(12)
    edited[1] = ("r-1", "m", b'{"body": "another"}')
    edited[7] = ("another", "m", edited[7][2])
    second = take_in(store, edited, earlier=[first])
    assert second.reused == second.counts.completed == 6
    assert sorted(work(store)) == ["another", "r-1", "r-10", "r-11", "r-8", "r-9"]
    after = catalog.by_pk(store, pk=second.pk)
    assert (after.counts.completed, after.counts.failed, after.reused) == (12, 0, 6)
    assert {custom_id: b'"%s"' % custom_id.encode() for custom_id, _, _ in edited} == found(store, second)
    assert count(store, "result") == 20


def test_order_of_lines_does_not_matter(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "CHUNK_REQUESTS", 3)
    first = take_in(store, lines(20))
    work(store)
    second = take_in(store, reversed(lines(20)), earlier=[first])
    assert second.reused == 20
    assert [entry.custom_id for entry in results.finished(store, pk=second.pk)] == [
        f"r-{number}" for number in reversed(range(20))
    ]
    assert found(store, second) == found(store, first)


def test_another_model_is_another_request(store: Store) -> None:
    """The body names its model. Mutant: _digest without the body."""
    first = take_in(store, lines(3, model="a", body=b'{"model": "a", "n": %d}'))
    work(store, models=["a"])
    second = take_in(store, lines(3, model="b", body=b'{"model": "b", "n": %d}'), earlier=[first])
    assert second.reused == 0
    mixed = lines(3, model="b", body=b'{"model": "b", "n": %d}') + [
        (f"a{custom_id}", model, body)
        for custom_id, model, body in lines(2, model="a", body=b'{"model": "a", "n": %d}')
    ]
    work(store, models=["b"])
    third = take_in(store, mixed, earlier=[second, first])
    assert third.reused == 3


def test_another_endpoint_is_another_request(store: Store) -> None:
    """Mutant: accept does not compare endpoints."""
    first = take_in(store, lines(3))
    work(store)
    assert take_in(store, lines(3), earlier=[first], endpoint="/v1/completions").reused == 0


def test_failed_answers_are_not_reused(store: Store) -> None:
    """Mutant: reuse._SUCCEEDED always true."""
    first = take_in(store, lines(5))
    who = worker(store)
    (lease,) = claim(store, who)
    for request, status in zip(lease.requests, (200, 400, 500, 302, 201), strict=True):
        queue.flush(store, worker=who, results=answers_to(lease, [request], status=status))
    second = take_in(store, lines(5), earlier=[first])
    assert (second.reused, second.counts.completed, second.counts.failed) == (2, 2, 0)
    assert work(store) == ["r-1", "r-2", "r-3"]


def test_an_unfinished_batch_gives_what_it_has(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ingest, "CHUNK_REQUESTS", 4)
    first = take_in(store, lines(10))
    who = worker(store)
    (lease,) = claim(store, who)
    queue.flush(store, worker=who, results=answers_to(lease, lease.requests[:3]))
    assert take_in(store, lines(10), earlier=[first]).reused == 3


def test_several_batches_are_looked_through_in_order(store: Store) -> None:
    first = take_in(store, lines(4))
    work(store)
    second = take_in(store, lines(6)[2:])
    work(store)
    third = take_in(store, lines(7), earlier=[second, first])
    assert third.reused == 6


def test_reused_answers_are_reused_again(store: Store) -> None:
    first = take_in(store, lines(4))
    work(store)
    second = take_in(store, lines(5), earlier=[first])
    work(store)
    assert take_in(store, lines(5), earlier=[second]).reused == 5


def test_what_is_left_of_a_reusing_batch_can_be_cancelled(store: Store) -> None:
    first = take_in(store, lines(4))
    work(store)
    second = take_in(store, lines(6), earlier=[first])
    finalization.request_cancel(store, pk=second.pk)
    codes = [code_of(entry) for entry in results.finished(store, pk=second.pk)]
    assert codes == [None] * 4 + ["batch_cancelled"] * 2


def test_replays_change_nothing(replaying: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the copy without ON CONFLICT DO NOTHING."""
    monkeypatch.setattr(ingest, "CHUNK_REQUESTS", 4)
    first = take_in(replaying, lines(9))
    work(replaying)
    second = take_in(replaying, lines(11), earlier=[first])
    assert (second.counts.completed, second.prompt_tokens) == (9, 18)
    assert found(replaying, second) == found(replaying, first)


def _take_in_and_stop_short(url: str, pk: int) -> None:
    """Copy the first answers, then hang: what is killed there has written a part."""
    store = Store(url)
    copied = reuse._copy

    def copy_once(*args: Any, **named: Any) -> list[reuse.Reused]:
        copied(*args, **named)
        signal.pause()
        return []

    reuse._copy = copy_once
    reuse.WRITE_CHUNKS = 1
    take_in(store, lines(600), earlier=[catalog.by_pk(store, pk=pk)])


def test_a_crash_in_the_middle_leaves_no_trace(store: Store) -> None:
    """Mutant: catalog.remove_rows leaves results."""
    first = take_in(store, lines(600))
    work(store)
    before = {table: count(store, table) for table in ("batch", "request", "chunk", "result")}
    url = store.url.render_as_string(hide_password=False)
    dying = multiprocessing.get_context("spawn").Process(target=_take_in_and_stop_short, args=(url, first.pk))
    dying.start()
    try:
        until(lambda: count(store, "result") > before["result"])
        assert [batch.id for batch in catalog.recent(store, limit=9)] == [first.id], "it is not visible"
        assert catalog.by_pk(store, pk=first.pk).status is BatchStatus.IN_PROGRESS
    finally:
        assert dying.pid is not None
        os.kill(dying.pid, signal.SIGKILL)
        dying.join()
    swept = staging.sweep(store, gone=lambda identity: processes.liveness(identity) is Liveness.GONE)
    assert swept == 1
    assert {table: count(store, table) for table in before} == before
