"""What every kind of engine promises (``vbatch.engine.Engine``), shown by each of them: one suite, three engines."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import msgspec
import pytest

from tests.engine.conftest import MODEL
from tests.engine.conftest import Loaded as RealVllm
from tests.rigs.hostile import Hostile
from tests.rigs.parrot import parrot
from vbatch.config.endpoints import EndpointSettings
from vbatch.engine import Engine, EngineDied, Loaded
from vbatch.engine.endpoint import configured
from vbatch.engine.kinds import KINDS

CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Subject:
    """An engine of one kind, the event loop that it belongs to, and the model that it answers for.

    ``another`` makes one that may be closed; None where that takes too long.
    """

    engine: Engine
    run: Callable[[Coroutine[Any, Any, Any]], Any]
    model: str
    another: Callable[[], Coroutine[Any, Any, Loaded]] | None

    def body(self, text: str = "hello", **more: object) -> bytes:
        messages = [{"role": "user", "content": text}]
        return msgspec.json.encode({"model": self.model, "messages": messages, "max_tokens": 4, **more})


@pytest.fixture(params=["echo", "endpoint", pytest.param("vllm", marks=(pytest.mark.vllm, pytest.mark.long))])
def subject(request: pytest.FixtureRequest) -> Iterator[Subject]:
    """An engine of each kind."""
    if request.param == "vllm":
        real: RealVllm = request.getfixturevalue("loaded")
        yield Subject(real.engine, real.run, MODEL, None)
        return
    with Hostile("m", latency=0.02) as server, asyncio.Runner() as runner:

        async def make() -> Loaded:
            if request.param == "echo":
                return parrot("m", latency=timedelta(seconds=0.02))
            settings = EndpointSettings.model_validate({"url": server.url})
            return await configured.load({"s": settings}, max_inflight=None, request_timeout=None)

        engine = runner.run(make())
        yield Subject(engine, runner.run, "m", make)
        runner.run(engine.close())


def test_every_kind_is_tested() -> None:
    """Mutant: a new kind that this suite does not know."""
    assert set(KINDS) == {"echo", "endpoint", "vllm"}


def test_it_describes_itself(subject: Subject) -> None:
    engine = subject.engine
    assert subject.model in engine.names
    assert engine.max_inflight >= 1
    assert engine.died is None
    assert not engine.killed
    assert engine.refused == {}
    assert engine.endpoints is None or CHAT in engine.endpoints


def test_it_answers_a_request_and_its_progress_rises(subject: Subject) -> None:
    """The body is JSON, as it was written. Mutant: progress that does not rise: the worker would call it hanging."""
    before = subject.engine.progress
    reply = subject.run(subject.engine.post(CHAT, subject.body()))
    assert reply.status == 200
    assert msgspec.json.decode(reply.body)["usage"]["completion_tokens"] > 0
    assert reply.request_id
    assert subject.engine.progress > before


def test_many_requests_at_once_each_get_their_own_answer(subject: Subject) -> None:
    """Mutant: an engine that mixes up the answers of requests that run at the same time."""

    async def post() -> list[Any]:
        bodies = (subject.body(f"text {number}", max_tokens=1 + number % 3) for number in range(20))
        return await asyncio.gather(*(subject.engine.post(CHAT, body) for body in bodies))

    replies = subject.run(post())
    assert [reply.status for reply in replies] == [200] * 20
    assert len({reply.request_id for reply in replies}) == 20


def test_a_wrong_request_gets_an_error_object(subject: Subject) -> None:
    """It is an answer, and not an exception: the worker records it."""
    reply = subject.run(subject.engine.post(CHAT, subject.body(max_tokens="many")))
    assert 400 <= reply.status < 500
    assert msgspec.json.decode(reply.body)["error"]["message"]


def test_a_cancelled_call_leaves_nothing_behind(subject: Subject) -> None:
    """The next one is answered. Mutant: a place at a server that is never given back."""

    async def cancel() -> int:
        for _ in range(30):
            posting = [asyncio.ensure_future(subject.engine.post(CHAT, subject.body())) for _ in range(10)]
            await asyncio.sleep(0)
            for each in posting:
                each.cancel()
            await asyncio.gather(*posting, return_exceptions=True)
        reply = await subject.engine.post(CHAT, subject.body())
        return int(reply.status)

    assert subject.run(cancel()) == 200


def test_after_its_end_nothing_is_answered(subject: Subject) -> None:
    """Mutant: answers from after the death, which may be of anything."""
    if subject.another is None:
        pytest.skip("a second vLLM takes half a minute; test_vllm ends its own")
    make = subject.another

    async def end() -> None:
        engine = await make()
        await engine.close()
        assert engine.died is not None
        with pytest.raises(EngineDied):
            await engine.post(CHAT, subject.body())

    subject.run(end())
