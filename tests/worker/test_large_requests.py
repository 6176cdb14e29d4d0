"""What a worker holds is bounded by bytes, not only by the number of requests."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.commands import chat
from tests.rigs.parrot import NAME
from tests.rigs.queued import queued
from tests.worker.test_inflight import Puppet, inflight, lease, settle
from tests.worker.test_loop import work
from vbatch.engine import Loaded, Reply
from vbatch.engine.echo import EchoEngine
from vbatch.engine.kinds import KINDS, Load
from vbatch.store import Store, queue
from vbatch.store import bodies as bodies_module
from vbatch.store.records import Flushed, Lease, LeaseKey, Request, Result, Unread
from vbatch.worker import inflight as inflight_module
from vbatch.worker import pending as pending_module
from vbatch.worker import sizes as sizes_module
from vbatch.worker.context import Context
from vbatch.worker.pending import Pending


@pytest.fixture
def few_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Bound what is in flight to 100 bytes, what is read ahead to 40, and a transaction to 20."""
    monkeypatch.setattr(inflight_module, "INFLIGHT_BYTES", 100)
    monkeypatch.setattr(inflight_module, "SAVED_BYTES", 20)
    monkeypatch.setattr(pending_module, "READ_BYTES", 40)


def bodies(*sizes: int, first: int = 0) -> tuple[Request, ...]:
    """Make requests with bodies of these sizes, each of other bytes."""
    return tuple(
        Request(seq=seq, line=seq, custom_id=f"r-{seq}", body=str(seq % 10).encode() * size)
        for seq, size in enumerate(sizes, start=first)
    )


def large(*sizes: int, read: int | None = None) -> Lease:
    """Make a lease of requests of these sizes, of which the first so many come with their bodies."""
    requests = bodies(*sizes)
    count = len(sizes) if read is None else read
    return Lease(
        key=LeaseKey(1, 0, 1),
        batch_id="batch_1",
        model="m",
        url="/v1/chat/completions",
        alone=False,
        requests=requests[:count],
        unread=tuple(Unread(request.seq, len(request.body)) for request in requests[count:]),
    )


@pytest.mark.usefixtures("few_bytes")
def test_large_requests_run_a_few_at_a_time() -> None:
    """Mutant: Inflight.start that counts requests alone."""

    async def scene() -> None:
        engine = Puppet()
        held = inflight(engine)
        held.add([large(40, 40, 40, 10)])
        held.start()
        await settle()
        assert len(engine.waiting) == 2, "80 bytes run, and 40 more are too many"
        await engine.answer(b"0" * 40)
        held.take_answered()
        held.saved()
        held.start()
        await settle()
        assert sorted(map(len, engine.waiting)) == [10, 40, 40]

    asyncio.run(scene())


@pytest.mark.usefixtures("few_bytes")
def test_a_request_larger_than_the_bound_runs_alone() -> None:
    """Mutants: a bound without the exception (it never runs); an exception that does not wait for the others."""

    async def scene() -> None:
        engine = Puppet()
        held = inflight(engine)
        held.add([large(10, 300, 10)])
        held.start()
        await settle()
        assert sorted(map(len, engine.waiting)) == [10]
        await engine.answer(b"0" * 10)
        held.start()
        await settle()
        assert not engine.waiting, "the answer before it is not saved yet"
        assert held.to_be_saved
        held.take_answered()
        held.saved()
        held.start()
        await settle()
        assert sorted(map(len, engine.waiting)) == [300]
        await engine.answer(b"1" * 300)
        held.take_answered()
        held.saved()
        held.start()
        await settle()
        assert sorted(map(len, engine.waiting)) == [10]

    asyncio.run(scene())


@pytest.mark.usefixtures("few_bytes")
def test_answers_that_are_not_saved_yet_hold_back_the_next_requests() -> None:
    """While the store is unreachable.

    Mutants: Inflight._free without the answers; without those that are being saved.
    """

    async def scene() -> None:
        engine = Puppet()
        held = inflight(engine, limit=2)
        held.add([lease(0, requests=6)])
        held.start()
        await settle()
        for body in list(engine.waiting):
            engine.waiting[body].set_result(Reply(status=200, body=b"1" * 60))
        await settle()
        assert held.to_be_saved, "without waiting for the flush interval"
        held.start()
        await settle()
        assert not engine.waiting
        taken = held.take_answered()
        assert len(taken) == 1, "one large answer is saved alone"
        held.start()
        await settle()
        assert not engine.waiting, "one is being saved, another waits for that"
        held.give_back(taken)
        held.start()
        await settle()
        assert not engine.waiting
        for _ in range(2):
            held.take_answered()
        held.saved()
        held.start()
        await settle()
        assert engine.waiting

    asyncio.run(scene())


@pytest.mark.usefixtures("few_bytes")
def test_as_many_run_as_their_answers_are_expected_to_leave_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Small requests with large answers, as embeddings are. Mutant: Inflight._free that counts bodies alone."""
    monkeypatch.setattr(sizes_module, "MEMORY", 1)

    async def scene() -> None:
        engine = Puppet()
        held = inflight(engine)
        held.add([lease(0, requests=1)])
        held.start()
        await settle()
        engine.waiting[b"0.1.0"].set_result(Reply(status=200, body=b"1" * 40))
        await settle()
        held.take_answered()
        held.saved()
        held.add([lease(1, requests=8)])
        held.start()
        await settle()
        assert len(engine.waiting) == 2

    asyncio.run(scene())


def test_the_first_large_answers_do_not_come_in_a_crowd(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors, and the probabilities of each token; a text that a model writes is small, so its requests all start.

    Mutants: Sizes.expected without its share for answers that are not known; kind_of that takes every answer for text
    (both start 64 at once); one that takes none for text; a share that does not shrink with the answers.
    """
    monkeypatch.setattr(inflight_module, "INFLIGHT_BYTES", 1024 * KIB)

    async def widths(url: str, body: bytes = b"", *, answer: bytes) -> list[int]:
        engine = Puppet()
        engine.max_inflight = 64
        held = inflight(engine, limit=64)
        some = lease(0, requests=200)
        requests = tuple(replace(request, body=body + request.body) for request in some.requests)
        held.add([replace(some, url=url, requests=requests)])
        widths = []
        for _ in range(5):
            held.start()
            await settle()
            widths.append(len(engine.waiting))
            for future in list(engine.waiting.values()):
                future.set_result(Reply(status=200, body=answer))
            await settle()
            while held.answered:
                held.take_answered()
            held.saved()
        return widths

    small, large = b"{}", b'{"text":"%s"}' % (b"x" * 400 * KIB)
    assert asyncio.run(widths("/v1/embeddings", answer=small)) == [2, 8, 32, 64, 64]
    assert asyncio.run(widths("/v1/embeddings", answer=large)) == [2, 2, 2, 2, 2]
    chat = "/v1/chat/completions"
    assert asyncio.run(widths(chat, answer=small))[0] == 64
    assert asyncio.run(widths(chat, b'{"top_logprobs":5}', answer=small))[:2] == [2, 8]


@pytest.mark.usefixtures("few_bytes")
def test_no_more_is_leased_while_enough_bytes_wait() -> None:
    """Else one worker of several leases all. Mutant: Inflight.wanting that counts requests alone."""
    held = inflight(Puppet())
    held.add([large(20, 30, read=0)])
    assert (held.wanting, held.room) == (0, 0)
    held = inflight(Puppet())
    held.add([large(10, 10)])
    assert (held.wanting, held.room) == (6, 20)


@pytest.mark.usefixtures("few_bytes")
def test_bodies_are_read_ahead_as_far_as_there_is_room() -> None:
    """Mutants: Pending.page without a bound; one that reads a second large body beside the first."""
    pending = Pending()
    pending.add(large(20, 20, 20, 90, read=0))
    page = pending.page(free=1000)
    assert page is not None
    assert [unread.seq for unread in page.unread] == [0, 1]
    pending.fill(page, bodies(20, 20))
    assert pending.page(free=1000) is None
    assert [pending.pop()[1].seq for _ in range(2)] == [0, 1]
    page = pending.page(free=1000)
    assert page is not None
    assert [unread.seq for unread in page.unread] == [2]
    pending.fill(page, bodies(20, first=2))
    assert pending.page(free=1000) is None, "what is larger than all of the room is read when nothing else is"
    pending.pop()
    assert pending.page(free=80) is None, "it could not run yet"
    page = pending.page(free=90)
    assert page is not None
    assert [unread.seq for unread in page.unread] == [3]


@pytest.mark.usefixtures("few_bytes")
def test_bodies_of_a_lease_that_was_lost_meanwhile_are_dropped() -> None:
    """Mutant: Pending.fill that takes whatever was read; the requests of a cancelled batch run."""
    pending = Pending()
    lost = large(5, 5, read=0)
    pending.add(lost)
    page = pending.page(free=100)
    assert page is not None
    pending.forget({lost.key})
    again = large(5, 5, read=0)
    pending.add(again)
    pending.fill(page, bodies(5, 5))
    assert (len(pending), pending.next) == (2, None)


@pytest.mark.usefixtures("few_bytes")
def test_what_was_not_found_is_pending_no_more() -> None:
    """Its batch was deleted. Mutant: Pending.fill that goes by what was read; the worker asks for ever."""
    pending = Pending()
    pending.add(large(5, 5, read=0))
    page = pending.page(free=100)
    assert page is not None
    pending.fill(page, ())
    assert (len(pending), pending.page(free=100)) == (0, None)


class Scale(EchoEngine):
    """An echo that weighs the bodies it has."""

    def __init__(self, load: Load) -> None:
        super().__init__(load.model, timedelta(milliseconds=20))
        self.weight = 0
        self.most = 0
        self.requests = 0
        self.together: set[int] = set()

    async def post(self, url: str, body: bytes) -> Reply:
        """Answer it, and note how much runs with it."""
        self.weight += len(body)
        self.requests += 1
        self.most = max(self.most, self.weight)
        if len(body) > LARGE:
            self.together.add(self.requests)
        try:
            return await super().post(url, body)
        finally:
            self.weight -= len(body)
            self.requests -= 1


KIB = 1 << 10
LARGE = 100 * KIB


def test_a_batch_of_large_requests_is_answered_with_a_few_in_the_engine(
    store: Store, context: Context, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one chunk, as vbatch 0.1 cut it; two are larger than all that may run together.

    Mutants: Inflight.start without its bound; queue.claim that reads each chunk whole; queue.flush of all answers at
    once; Serving without its reader of bodies (the batch does not end).
    """
    monkeypatch.setattr(inflight_module, "INFLIGHT_BYTES", LARGE)
    monkeypatch.setattr(inflight_module, "SAVED_BYTES", 30 * KIB)
    monkeypatch.setattr(pending_module, "READ_BYTES", 30 * KIB)
    engines: list[Scale] = []
    read, saved = [], []

    async def load(load: Load) -> Loaded:
        engines.append(Scale(load))
        return engines[-1]

    claim, flush, page = queue.claim, queue.flush, bodies_module.read

    def claim_and_weigh(*args: Any, **kwargs: Any) -> list[Lease]:
        leases = claim(*args, **kwargs)
        read.append(sum(len(request.body) for lease in leases for request in lease.requests))
        return leases

    def read_and_weigh(*args: Any) -> tuple[Request, ...]:
        found = page(*args)
        read.append(sum(len(request.body) for request in found))
        return found

    def flush_and_weigh(*args: Any, results: list[Result], **kwargs: Any) -> Flushed:
        saved.append([len(result.outcome.body or b"") for result in results])
        return flush(*args, results=results, **kwargs)

    monkeypatch.setitem(KINDS, NAME, replace(KINDS[NAME], load=load))
    monkeypatch.setattr(queue, "claim", claim_and_weigh)
    monkeypatch.setattr(queue, "flush", flush_and_weigh)
    monkeypatch.setattr(bodies_module, "read", read_and_weigh)
    lines = [chat(f"r-{n}", "x" * (120 if n in (20, 50) else 8) * KIB) for n in range(80)]
    batch = queued(store, tmp_path, lines)
    work(context)
    assert len(batch.output()) == 80
    (engine,) = engines
    assert engine.together == {1}, "what is larger than the bound runs alone"
    assert 120 * KIB < engine.most < 121 * KIB, "and nothing with it"
    assert sorted(set(read))[-2] <= 30 * KIB, "the others are read in pages"
    assert max(read) < 121 * KIB
    assert all(len(sizes) == 1 or sum(sizes) <= 30 * KIB for sizes in saved)
