"""What of a batch is blocked, by whom that is decided, and how its requests are taken out of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import Connection, select

from tests.rigs.filling import NOBODY, claim, new_batch, rows, take_in, worker
from vbatch import batches
from vbatch.batches import RetryOptions
from vbatch.errors import WrongStatus
from vbatch.protocol import BatchStatus
from vbatch.store import Store, blocked, catalog, ingest, registry
from vbatch.store.records import Batch, BlockedModel, Span
from vbatch.store.tables import BATCH
from vbatch.system import processes

CHATS, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
HOUR_AGO = datetime.now(UTC) - timedelta(hours=1)


def block(model: str = "m", url: str = "", *, host: str = "here") -> BlockedModel:
    return BlockedModel(
        configuration=host, model=model, url=url, host=host, reason="no", hint=None, since=HOUR_AGO
    )


def two_endpoints(store: Store, folder: Path) -> Batch:
    """A batch of three chats and two embeddings, all for one model."""
    new = new_batch(output_path=str(folder / "o.jsonl"), error_path=str(folder / "e.jsonl"))
    with ingest.ingest(store, new=new, submitter=processes.current()) as storing:
        for line in range(1, 6):
            url = CHATS if line < 4 else EMBEDDINGS
            storing.add(line, f"r-{line}", "m", b'{"model": "m", "input": "x"}', url)
        return storing.accept(endpoint=CHATS, input_sha256="sha")


def requests_of(store: Store, pk: int) -> list[tuple[str, str]]:
    query = "SELECT custom_id, body FROM request WHERE batch = :pk ORDER BY line"
    return [(custom_id, bytes(body).decode()) for custom_id, body in rows(store, query, pk=pk)]


def test_an_endpoint_is_blocked_alone(store: Store, tmp_path: Path) -> None:
    batch = two_endpoints(store, tmp_path)
    blocked.record(store, block(url=EMBEDDINGS))
    found = batches.blocks(store)[batch.pk]
    assert [(each.url, each.requests) for each in found.models] == [(EMBEDDINGS, 2)]
    assert not found.entirely
    blocked.record(store, block())
    assert batches.blocks(store)[batch.pk].entirely


def test_a_worker_that_cannot_have_the_model_is_no_hope(store: Store) -> None:
    """Mutant: each live worker counted; an echo worker on another machine hides the block for ever."""
    pk = take_in(store, 2).pk
    blocked.record(store, block())
    registry.register(store, identity=NOBODY, engine="echo")
    assert pk in batches.blocks(store)
    registry.register(store, identity=replace(NOBODY, pid=9), engine="vllm")
    assert batches.blocks(store) == {}, "one that may have it is to try first"
    blocked.record(store, block(host="elsewhere"))
    assert pk in batches.blocks(store)


def test_an_endpoint_waits_for_each_machine_that_may_have_it(store: Store, tmp_path: Path) -> None:
    """Mutant: the block of an endpoint on one machine that counts for all."""
    pk = two_endpoints(store, tmp_path).pk
    blocked.record(store, block(url=EMBEDDINGS))
    for pid, host in enumerate(("here", "elsewhere")):
        registry.register(store, identity=replace(NOBODY, host=host, pid=pid), engine="vllm")
    assert batches.blocks(store) == {}
    blocked.record(store, block(host="elsewhere"))
    found = batches.blocks(store)[pk]
    assert [each.url for each in found.models] == [EMBEDDINGS], "the chats may run here"


def test_a_load_leaves_the_block_of_an_endpoint_as_old_as_it_was(store: Store, tmp_path: Path) -> None:
    """Mutant: each load takes it back, and what is recorded again is new, and notified again."""
    two_endpoints(store, tmp_path)
    blocked.record(store, block())
    blocked.record(store, block(url=EMBEDDINGS))
    blocked.clear(store, host="here", model="m", answers_at={CHATS})
    blocked.record(store, replace(block(url=EMBEDDINGS), since=datetime.now(UTC)))
    (known,) = blocked.known(store)
    assert (known.url, known.since) == (EMBEDDINGS, HOUR_AGO)
    blocked.clear(store, host="here", model="m", answers_at={EMBEDDINGS})
    assert blocked.known(store) == []


def test_the_requests_of_a_blocked_endpoint_run_with_another_model(store: Store, tmp_path: Path) -> None:
    """The rest of the batch continues. Mutant: only models that are blocked as a whole; the hint then leads nowhere."""
    old = two_endpoints(store, tmp_path)
    blocked.record(store, block(url=EMBEDDINGS))
    new = batches.retry(store, old.id, RetryOptions(model="embedder"))
    assert requests_of(store, new.pk) == [
        ("r-4", '{"model":"embedder","input":"x"}'),
        ("r-5", '{"model":"embedder","input":"x"}'),
    ]
    old = catalog.by_pk(store, pk=old.pk)
    assert (old.status, old.counts.failed) == (BatchStatus.IN_PROGRESS, 2)
    (lease,) = claim(store, worker(store))
    assert [request.custom_id for request in lease.requests] == ["r-1", "r-2", "r-3"]


def test_a_retry_that_is_cut_off_takes_nothing_out(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: the requests taken out in a transaction of its own, before or after the one that submits them."""
    old = two_endpoints(store, tmp_path)
    blocked.record(store, block())
    take_out = blocked.take_out

    def cut_off(connection: Connection, *, pk: int, spans: Sequence[Span], new_id: str) -> None:
        take_out(connection, pk=pk, spans=spans, new_id=new_id)
        accepted = select(BATCH.c.status).where(BATCH.c.id == new_id)
        assert connection.execute(accepted).scalar_one() == BatchStatus.IN_PROGRESS, "in this transaction"
        raise KeyboardInterrupt

    monkeypatch.setattr(blocked, "take_out", cut_off)
    with pytest.raises(KeyboardInterrupt):
        batches.retry(store, old.id, RetryOptions(model="other"))
    monkeypatch.setattr(blocked, "take_out", take_out)
    assert [each.id for each in batches.list_batches(store).batches] == [old.id]
    assert catalog.by_pk(store, pk=old.pk).counts.failed == 0
    new = batches.retry(store, old.id, RetryOptions(model="other"))
    assert [custom_id for custom_id, _ in requests_of(store, new.pk)] == [f"r-{line}" for line in range(1, 6)]
    assert catalog.by_pk(store, pk=old.pk).counts.failed == 5


def test_a_retry_whose_commit_got_no_answer_keeps_what_it_took_out(
    store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ctrl-C just after the COMMIT. Mutant: ingest takes the new batch back, and the requests are in neither."""
    old = two_endpoints(store, tmp_path)
    blocked.record(store, block())
    write = store.write

    def interrupted(work: Callable[[Connection], Any]) -> Any:
        done = write(work)
        if isinstance(done, Batch):  # of all transactions the one of ``accept`` alone
            raise KeyboardInterrupt
        return done

    monkeypatch.setattr(store, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        batches.retry(store, old.id, RetryOptions(model="other"))
    monkeypatch.undo()
    assert catalog.by_pk(store, pk=old.pk).counts.failed == 5
    new, _ = catalog.recent(store, limit=2)
    assert [custom_id for custom_id, _ in requests_of(store, new.pk)] == [f"r-{line}" for line in range(1, 6)]


def test_a_retry_does_not_double_what_a_worker_has_begun(store: Store, tmp_path: Path) -> None:
    """Mutant: chunks ended without a look whether they still wait."""
    old = two_endpoints(store, tmp_path)
    blocked.record(store, block())
    spans = blocked.waiting(store, pk=old.pk, endpoints=[("m", "")])
    claim(store, worker(store))
    with pytest.raises(WrongStatus, match="their model can be loaded now"):
        store.write(lambda connection: blocked.take_out(connection, pk=old.pk, spans=spans, new_id="new"))
    assert catalog.by_pk(store, pk=old.pk).counts.failed == 0
