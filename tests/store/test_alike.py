"""A worker prefers chunks that begin like those it has: never against the order of batches, and without waiting.

``take_in_groups`` makes one chunk for each group that it names.
"""

from __future__ import annotations

import pytest
from sqlalchemy import Update, event, update

from tests.rigs.filling import ENDPOINT, answers_to, claim, new_batch, rows, take_in, take_in_groups, worker
from vbatch.store import Store, ingest, queue
from vbatch.store.records import ChunkState, Lease, LeaseKey
from vbatch.store.tables import CHUNK
from vbatch.system import processes

A, B, C = 11, 22, -33


def number(leases: list[Lease]) -> int:
    """The number of the only chunk that was claimed."""
    (lease,) = leases
    return lease.key.number


def test_each_of_two_workers_continues_with_its_own_group(store: Store) -> None:
    """Mutants: ``claim`` without groups; ``begin_group`` that does not record them."""
    take_in_groups(store, [A, B, A, B, A, B])
    one, other = worker(store, pid=1), worker(store, pid=2)
    held = {who: claim(store, who) for who in (one, other)}
    assert [number(held[who]) for who in (one, other)] == [0, 1]
    order = [(other, 3), (other, 5), (one, 2), (one, 4)]
    for who, expected in order:
        (kept,) = held[who]
        held[who] = claim(store, who, held=[kept.key])
        assert number(held[who]) == expected
        queue.flush(store, worker=who, results=answers_to(kept))


def test_none_is_waited_for(store: Store) -> None:
    """Where its own group has ended a worker takes the next chunk, also one of another worker's group.

    Mutant: only chunks of its group.
    """
    take_in_groups(store, [A, B, None, B])
    one, other = worker(store, pid=1), worker(store, pid=2)
    held = [claim(store, one)[0].key]
    claim(store, other)
    assert [lease.key.number for lease in claim(store, one, held=held)] == [2]
    held = [lease.key for lease in claim(store, one)] + held
    assert number(claim(store, one, held=held)) == 3


def test_several_chunks_at_once_are_those_of_the_group_and_then_the_next(store: Store) -> None:
    """Mutant: the others go first."""
    take_in_groups(store, [A, B, C, A, B, A])
    who = worker(store)
    (first,) = claim(store, who)
    assert [lease.key.number for lease in claim(store, who, chunks=4, held=[first.key])] == [3, 5, 1, 2]
    assert rows(store, "SELECT number FROM chunk WHERE state = 'ready'") == [(4,)]


@pytest.mark.parametrize("priorities", [(0, 1), (0, 0)], ids=["a higher priority", "an older batch"])
def test_another_batch_whose_turn_it_is_goes_first(store: Store, priorities: tuple[int, int]) -> None:
    """Mutant: the group of any batch is preferred."""
    mine, urgent = priorities
    pk = take_in(store, 1, priority=urgent).pk
    store.write(lambda connection: connection.execute(_set_state(pk, ChunkState.RUNNING)))
    batch = take_in_groups(store, [A, B, A], priority=mine)
    who = worker(store)
    (first,) = claim(store, who)
    assert first.key.batch == batch.pk
    store.write(lambda connection: connection.execute(_set_state(pk, ChunkState.READY)))
    leases = claim(store, who, chunks=2, held=[first.key])
    assert [(lease.key.batch, lease.key.number) for lease in leases] == [(pk, 0), (batch.pk, 1)]
    assert number(claim(store, who, held=[first.key, *(lease.key for lease in leases)])) == 2


def _set_state(pk: int, state: ChunkState) -> Update:
    return update(CHUNK).where(CHUNK.c.batch == pk).values(state=state, worker=None)


def test_the_same_group_in_another_batch_is_another_one(store: Store) -> None:
    """Mutant: ``alike`` alone, without the batch, is compared."""
    take_in_groups(store, [A])
    other, last = take_in_groups(store, [B, A]), take_in_groups(store, [A, B])
    who = worker(store)
    held: list[LeaseKey] = []
    for _ in range(5):
        held += [lease.key for lease in claim(store, who, held=held)]
    assert held[1:] == [(other.pk, 0, 1), (other.pk, 1, 1), (last.pk, 0, 1), (last.pk, 1, 1)]


def test_a_chunk_that_runs_alone_is_not_overtaken(store: Store) -> None:
    """Mutant: without the question for ``alone``, its turn comes behind the whole group."""
    batch = take_in_groups(store, [A, B, A])
    who = worker(store)
    (first,) = claim(store, who)
    alone = update(CHUNK).where(CHUNK.c.batch == batch.pk, CHUNK.c.number == 1).values(alone=True)
    store.write(lambda connection: connection.execute(alone))
    assert claim(store, who, held=[first.key]) == [], "it waits until the worker holds nothing"
    queue.flush(store, worker=who, results=answers_to(first))
    assert number(claim(store, who)) == 1


def test_a_chunk_that_is_given_back_keeps_its_group_and_a_mixed_one_has_none(store: Store) -> None:
    """Mutant: ``mixed`` is not set where a group begins in the middle of a chunk."""
    batch = take_in_groups(store, [A, A])
    assert rows(store, f"SELECT alike FROM chunk WHERE batch = {batch.pk}") == [(A,), (A,)]
    who = worker(store)
    (lease,) = claim(store, who)
    queue.release(store, worker=who, keys=[lease.key])
    assert number(claim(store, who)) == 0
    with ingest.ingest(store, new=new_batch(), submitter=processes.current()) as storing:
        lines = iter(range(1, 2000))
        for alike, many in ((None, 10), (A, 600), (None, 5), (B, 300)):
            storing.begin_group("m", "", alike=alike, fewest=64)
            for _ in range(many):
                line = next(lines)
                storing.add(line, f"r-{line}", "m", b"{}", grouped=True)
        mixed = storing.accept(endpoint=ENDPOINT, input_sha256="x")
    found = rows(store, f"SELECT total, alike FROM chunk WHERE batch = {mixed.pk} ORDER BY number")
    assert found == [(256, None), (256, A), (103, None), (256, B), (44, B)]


def test_a_claim_without_groups_asks_no_more_than_before(store: Store) -> None:
    """Mutant: the next chunk is looked for although the worker has no group."""
    take_in(store, 600)
    who = worker(store)
    (first,) = claim(store, who)
    asked: list[str] = []
    event.listen(
        store._engine, "before_cursor_execute", lambda _c, _d, statement, *_: asked.append(statement)
    )
    claim(store, who, held=[first.key])
    assert sum("FROM chunk" in statement for statement in asked) == 2, "what it has, and what is next"
