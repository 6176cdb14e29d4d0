"""The requests of one engine: which lease they belong to, who runs alone, whose time is up."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta

import pytest

from vbatch.engine import EngineDied, NotSent, Reply
from vbatch.engine.asgi import Message, Receive, Send
from vbatch.store.records import Lease, LeaseKey, Request
from vbatch.worker import inflight as inflight_module
from vbatch.worker.inflight import Inflight

OK = Reply(status=200, body=b"{}")


class Puppet:
    """An engine whose answers come when the test says so."""

    max_inflight = 8
    sequences = 8
    died: str | None = None
    killed = False
    endpoints = None
    names = frozenset({"m"})
    refused: Mapping[str, str] = {}
    lacking: Mapping[str, str] = {}

    def __init__(self) -> None:
        self.progress = 0
        self.waiting: dict[bytes, asyncio.Future[Reply]] = {}

    async def post(self, _url: str, body: bytes) -> Reply:
        waiting: asyncio.Future[Reply] = asyncio.get_running_loop().create_future()
        self.waiting[body] = waiting
        try:
            return await waiting
        finally:
            del self.waiting[body]

    async def answer(self, *bodies: bytes, error: Exception | None = None) -> None:
        """Answer these requests, or fail them."""
        for body in bodies:
            if error is None:
                self.progress += 1
                self.waiting[body].set_result(OK)
            else:
                self.waiting[body].set_exception(error)
        await settle()

    async def serve(self, scope: Message, receive: Receive, send: Send) -> None:
        raise NotImplementedError

    def processes(self) -> Sequence[int]:
        return ()

    async def close(self) -> None:
        return


async def settle() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def lease(n: int, *, epoch: int = 1, requests: int = 2, alone: bool = False) -> Lease:
    return Lease(
        key=LeaseKey(1, n, epoch),
        batch_id="batch_1",
        model="m",
        url="/v1/chat/completions",
        alone=alone,
        requests=tuple(
            Request(seq=seq, line=seq, custom_id=f"r-{seq}", body=f"{n}.{epoch}.{seq}".encode())
            for seq in range(10 * n, 10 * n + requests)
        ),
    )


def inflight(engine: Puppet, *, limit: int = 8, seconds: float | None = None) -> Inflight:
    timeout = timedelta(seconds=seconds) if seconds is not None else None
    return Inflight(engine, limit=limit, request_timeout=timeout)


def test_a_chunk_that_is_leased_again_is_not_mistaken_for_its_earlier_lease() -> None:
    """Lost while this worker was frozen, and then claimed by it once more.

    Mutant: leases that go by the chunk alone; what becomes of the old one takes the new one with it, and a chunk of
    a worker that lives is nobody's to claim: its batch never ends.
    """

    async def scene() -> None:
        engine = Puppet()
        held = inflight(engine)
        held.add([lease(0, epoch=1)])
        held.start()
        await settle()
        assert set(engine.waiting) == {b"0.1.0", b"0.1.1"}
        await engine.answer(b"0.1.0")
        held.add([lease(0, epoch=2)])
        held.start()
        await settle()
        assert set(engine.waiting) == {b"0.2.0", b"0.2.1"}, "the old lease's request was aborted"
        assert held.take_answered() == []
        held.forget({LeaseKey(1, 0, 1)})
        assert held.leases == {LeaseKey(1, 0, 2)}
        await engine.answer(b"0.2.0", b"0.2.1")
        assert [(result.seq, result.key.epoch) for result in held.take_answered()] == [(0, 2), (1, 2)]

    asyncio.run(scene())


def test_a_suspect_waits_until_the_one_before_it_is_saved() -> None:
    """A worker that dies then holds one alone. Mutant: the next one starts when this one is answered."""

    async def scene() -> None:
        engine = Puppet()
        held = inflight(engine)
        suspects = [lease(n, requests=1, alone=True) for n in (0, 1)]
        held.add(suspects)
        held.start()
        await settle()
        await engine.answer(b"0.1.0")
        held.start()
        await settle()
        assert not engine.waiting
        assert held.quiet, "nothing will be added, so it is saved at once"
        held.take_answered()
        held.start()
        await settle()
        assert not engine.waiting, "it is being saved"
        held.forget({suspects[0].key})
        held.start()
        await settle()
        assert set(engine.waiting) == {b"1.1.10"}

    asyncio.run(scene())


def test_a_suspect_waits_until_chats_have_ended() -> None:
    """What is not suspected does not. Mutant: the chats are not counted."""

    async def scene() -> None:
        engine = Puppet()
        held = inflight(engine)
        held.add([lease(0), lease(1, requests=1, alone=True)])
        held.start(chats=1)
        await settle()
        assert set(engine.waiting) == {b"0.1.0", b"0.1.1"}
        alone = [held.alone]
        await engine.answer(b"0.1.0", b"0.1.1")
        held.take_answered()
        held.start(chats=1)
        await settle()
        assert not engine.waiting
        alone.append(held.alone)
        held.start()
        await settle()
        assert set(engine.waiting) == {b"1.1.10"}
        assert [*alone, held.alone] == [False, True, True], "chats may begin until its time has come"

    asyncio.run(scene())


def test_nobodys_time_is_up_while_the_engine_gives_nothing_to_anybody() -> None:
    """Then it is the engine that hangs, and it is restarted (``engine_stall``); its requests are not to blame.

    Mutant: a time limit that looks at the clock alone; a wedged engine then fails request after request.
    """

    async def scene() -> None:
        engine = Puppet()
        held = inflight(engine, seconds=0.05)
        held.add([lease(0)])
        held.start()
        await asyncio.sleep(0.2)
        assert set(engine.waiting) == {b"0.1.0", b"0.1.1"}
        assert held.answered == []
        suspects = await held.abandon()
        assert suspects == {LeaseKey(1, 0, 1): (0, 1)}

    asyncio.run(scene())


def test_a_slow_request_ends_by_its_time_limit() -> None:
    """The engine works for others, or there is no other. Mutant: no time limit."""

    async def scene() -> None:
        engine = Puppet()
        held = inflight(engine, limit=2, seconds=0.1)
        held.add([lease(0, requests=3)])
        held.start()
        await settle()
        await engine.answer(b"0.1.0")
        held.start()
        await asyncio.sleep(0.15)
        engine.progress += 1
        await asyncio.sleep(1.2)
        codes = {result.seq: result.outcome.error_code for result in held.answered}
        assert codes == {0: None, 1: "request_timeout", 2: "request_timeout"}
        assert not engine.waiting, "their sequences are aborted"

    asyncio.run(scene())


def test_large_answers_are_saved_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: one transaction for whatever has been answered; 256 answers of some MB each are held three times."""
    monkeypatch.setattr(inflight_module, "SAVED_BYTES", 5)

    async def scene() -> None:
        engine = Puppet()
        held = inflight(engine)
        held.add([lease(0, requests=5)])
        held.start()
        await settle()
        await engine.answer(*(f"0.1.{seq}".encode() for seq in range(5)))
        assert [len(held.take_answered()) for _ in range(3)] == [2, 2, 1]
        assert held.answered == []
        monkeypatch.setattr(inflight_module, "SAVED_BYTES", 1)
        held.add([lease(1, requests=1)])
        held.start()
        await settle()
        await engine.answer(b"1.1.10")
        assert len(held.take_answered()) == 1, "one at a time, however large"

    asyncio.run(scene())


def test_an_engine_that_died_accuses_each_request_once() -> None:
    """Mutant: a request counted both as running and as lost; nobody is then ever alone."""

    async def scene() -> None:
        engine = Puppet()
        held = inflight(engine)
        held.add([lease(0, requests=1)])
        held.start()
        await settle()
        engine.waiting[b"0.1.0"].set_exception(EngineDied("SIGSEGV"))
        for _ in range(3):  # the request has seen it, the end of its task nobody yet
            await asyncio.sleep(0)
            assert await held.abandon() == {LeaseKey(1, 0, 1): (0,)}

    asyncio.run(scene())


def test_a_request_whose_audio_cannot_be_had_is_tried_again_where_that_may_pass() -> None:
    """Mutants: every failure is final; each is tried again."""

    async def scene() -> None:
        engine = Puppet()
        held = inflight(engine)
        held.add([lease(0)])
        held.start()
        await settle()
        await engine.answer(b"0.1.0", error=NotSent("audio_missing", "HTTP 404"))
        (result,) = held.take_answered()
        assert (result.seq, result.outcome.error_code, result.outcome.attempts) == (0, "audio_missing", 1)
        assert (result.outcome.status_code, result.outcome.body) == (None, None)
        for tries in range(1, inflight_module.ATTEMPTS + 1):
            passing = NotSent("audio_unreachable", "HTTP 503", transient=True, retry_after=0)
            await engine.answer(b"0.1.1", error=passing)
            if tries < inflight_module.ATTEMPTS:
                assert held.take_answered() == []
        (result,) = held.take_answered()
        assert (result.outcome.error_code, result.outcome.attempts) == ("audio_unreachable", 3)

    asyncio.run(scene())
