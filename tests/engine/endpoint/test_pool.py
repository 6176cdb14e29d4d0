"""The pool against servers that misbehave: every request is answered, and no server gets more than it takes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from datetime import timedelta
from statistics import median
from typing import TypeVar

import msgspec
import pytest

from tests.rigs.hostile import Hostile, Temper
from vbatch.config.endpoints import EndpointSettings
from vbatch.engine import EngineDied, NotSent, Reply
from vbatch.engine.endpoint import configured, place
from vbatch.engine.endpoint.place import Block
from vbatch.engine.endpoint.pool import Pool, Standing

T = TypeVar("T")

CHAT = "/v1/chat/completions"


def body(number: int, model: str = "m") -> bytes:
    return msgspec.json.encode({"model": model, "messages": [{"role": "user", "content": f"text {number}"}]})


def text(reply: Reply) -> str:
    return str(msgspec.json.decode(reply.body)["choices"][0]["message"]["content"])


def with_pool(
    servers: Sequence[Hostile],
    work: Callable[[Pool], Awaitable[T]],
    *,
    total: int | None = None,
    timeout: timedelta | None = None,
    **changes: object,
) -> T:
    """Do this with a pool of these servers, in an event loop of its own."""

    async def run() -> T:
        endpoints = {
            f"s{number}": EndpointSettings.model_validate({"url": server.url, **changes})
            for number, server in enumerate(servers)
        }
        pool = await configured.load(endpoints, max_inflight=total, request_timeout=timeout)
        async with AsyncExitStack() as stack:
            stack.push_async_callback(pool.close)
            async with asyncio.timeout(120):
                return await work(pool)

    return asyncio.run(run())


async def answer_all(
    pool: Pool, count: int, *, at_once: int = 100, after: Callable[[int], None] = lambda _done: None
) -> list[Reply]:
    """Answer so many requests, so many at once; ``after`` is called with the number of answers."""
    gate, replies = asyncio.Semaphore(at_once), list[Reply]()

    async def one(number: int) -> None:
        async with gate:
            reply = await pool.post(CHAT, body(number))
            assert text(reply) == f"text {number}"
            replies.append(reply)
            after(len(replies))

    await asyncio.gather(*(one(number) for number in range(count)))
    return replies


def test_the_limits_follow_the_servers_and_death_and_return_lose_nothing() -> None:
    """Three servers take 8, 24 and 12 at once; the second dies in the middle and returns.

    How near the limits come, and for how long a full server is left alone, is for tests with a clock of their own
    (``test_limits``, ``test_place``): on a busy machine a request that was sent may wait long before its server has it.

    Mutants: a pool that fails what a dead server had; a limit that falls to 1 with each refusal.
    """
    capacities = (8, 24, 12)
    with (
        Hostile(capacity=8, latency=0.03) as a,
        Hostile(capacity=24, latency=0.03) as b,
        Hostile(capacity=12, latency=0.03) as c,
    ):
        servers = (a, b, c)
        seen: list[tuple[int, ...]] = []

        async def work(pool: Pool) -> None:
            def after(done: int) -> None:
                seen.append(tuple(each.limit.value for each in pool.places))
                if done == 1500:
                    b.die()
                    asyncio.get_running_loop().call_later(0.5, b.return_)

            await answer_all(pool, 5000, at_once=60, after=after)

        with_pool(servers, work)
        answered = sum((server.answered for server in servers), start=type(a.answered)())
        again = sum(answered.values()) - 5000
        found = [median(limits[number] for limits in seen[3500:]) for number in range(3)]
        refusals = sum(server.refusals for server in servers)
        print(f"limits {found} of {capacities}; {refusals} refusals, {again} answered again")
        assert len(answered) == 5000
        assert again <= 24, "only what the dead server had was answered again"
        assert all(limit >= capacity / 2 for limit, capacity in zip(found, capacities, strict=True)), found


def test_a_hostile_server_answers_each_request_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """By one seed: 429 in two forms, 503, resets within a body, cut JSON, stalls. None is an attempt of a request.

    Mutants: truncated JSON that is passed on; a reset that ends a request.
    """
    temper = Temper(too_many=0.02, seconds=0.01, date=0.002, reset=0.02, truncated=0.02, stalls=0.01)
    monkeypatch.setattr(place, "FIRST_PAUSE", 0.02)
    with Hostile(temper=temper, seed=7) as wild, Hostile(temper=temper, seed=8, latency=0.005) as other:
        replies = with_pool((wild, other), lambda pool: answer_all(pool, 600, at_once=40))
        assert {reply.status for reply in replies} == {200}
        assert wild.resets + other.resets > 0
        answered = wild.answered + other.answered
        assert (len(answered), max(answered.values())) == (600, 1)


def test_a_dead_server_is_waited_for() -> None:
    """Its requests wait, with the reason; they are answered when it is back. Mutant: connection errors as attempts."""
    with Hostile() as server:
        server.die()

        async def work(pool: Pool) -> Reply:
            assert pool.standing("m") is Standing.UNKNOWN
            posting = asyncio.create_task(pool.post(CHAT, body(1)))
            await asyncio.sleep(0)
            troubles = [pool.trouble]
            server.return_()
            reply = await posting
            troubles.append(pool.trouble)
            assert troubles == [f"waiting for s0 ({server.url}): connection refused", None]
            assert pool.names == {"m"}
            return reply

        assert text(with_pool([server], work)) == "text 1"


_NO_MODEL = b'{"error": {"message": "The model `m` does not exist.", "param": "model"}}'


def test_a_server_that_falls_silent_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes connections and says nothing: its requests go to the other. Mutant: they wait for ever."""
    monkeypatch.setattr("vbatch.engine.endpoint.client.LOOK", 0.2)
    monkeypatch.setattr("vbatch.engine.endpoint.watch.LOOK", 0.1)
    monkeypatch.setattr("vbatch.engine.endpoint.watch.FIRST_LOOK", 0.05)
    with Hostile(latency=0.01) as silent, Hostile(latency=0.01) as other:

        def after(done: int) -> None:
            silent.frozen |= done == 50

        async def work(pool: Pool) -> str | None:
            await answer_all(pool, 200, at_once=20, after=after)
            return pool.places[0].down

        assert with_pool([silent, other], work) == "no answer within 0 s"


BLOCKS = {
    "revoked": (401, b'{"error": {"message": "bad key"}}', "refuses the key (HTTP 401): bad key"),
    "unpaid": (402, b"{}", "asks for a payment (HTTP 402)"),
    "forbidden": (403, b"<html>", "refuses the key (HTTP 403)"),
    "quota": (
        429,
        b'{"error": {"message": "spent", "code": "insufficient_quota"}}',
        "has no quota left: spent",
    ),
    "model": (404, _NO_MODEL, "does not know the model"),
    "route": (404, b'{"detail": "Not Found"}', "does not know the route"),
    "page": (200, b"<html>", "answers with a web page"),
    "moved": (307, b"", "redirects to http://evil.example/ (HTTP 307)"),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_what_a_person_must_fix_blocks_the_server_and_fails_nothing(name: str) -> None:
    """The other server answers; without it, the request waits. Mutants: each of these as an answer of the request."""
    status, forced, words = BLOCKS[name]
    html = {"Content-Type": "text/html"} if forced == b"<html>" else {}
    with Hostile() as bad, Hostile() as good:
        bad.forced = (status, {**html, "Location": "http://evil.example/"}, forced)

        async def work(pool: Pool) -> None:
            await answer_all(pool, 40, at_once=20)
            assert bad.posts >= 1
            good.die()
            pool.places[1].lost("dead")
            posting = asyncio.create_task(pool.post(CHAT, body(99)))
            await asyncio.sleep(0.05)
            assert not posting.done()
            (block,) = [each.block_of("m", CHAT) for each in pool.places[:1]]
            assert isinstance(block, Block)
            assert words in block.reason
            posting.cancel()

        with_pool((bad, good), work)
        posts = bad.posts
        assert posts <= 20, "what was sent at once, and nothing after that"


def test_an_unknown_model_blocks_and_names_the_servers() -> None:
    """Mutant: a request for it that waits for ever without a reason."""
    with Hostile("m", "n") as server:

        async def work(pool: Pool) -> Standing | Block:
            assert pool.names == {"m", "n"}
            assert pool.standing("n") is Standing.OPEN
            return pool.standing("x")

        unknown = with_pool([server], work)
        assert isinstance(unknown, Block)
        assert unknown.reason == f"no endpoint has x (s0 ({server.url}))"


def test_errors_of_the_request_are_its_answer() -> None:
    """400 is final, and so is a 404 of something that the request names; 500 is left to the worker, which counts it."""
    with Hostile() as server:

        async def work(pool: Pool) -> list[int]:
            statuses = []
            for status, message in (
                (400, "bad"),
                (404, "No response with id 'x'"),
                (500, "broken"),
                (502, ""),
            ):
                server.forced = (
                    status,
                    {},
                    msgspec.json.encode({"error": {"message": message, "param": "id"}}),
                )
                statuses.append((await pool.post(CHAT, body(1))).status)
            server.forced = (502, {"Retry-After": "3"}, b"<html>Bad Gateway</html>")
            reply = await pool.post(CHAT, body(1))
            assert msgspec.json.decode(reply.body)["error"]["message"] == "<html>Bad Gateway</html>"
            assert reply.retry_after == 3.0
            return statuses

        assert with_pool([server], work) == [400, 404, 500, 502]


def test_a_request_that_alone_is_refused_again_and_again_counts_an_attempt() -> None:
    """Twenty times, while others are answered there. Mutant: one that crashes its server is sent for ever."""
    with Hostile() as server:
        wild = body(0)

        async def work(pool: Pool) -> Reply:
            server_of = pool.places[0]
            original = server_of.client.post

            async def post(path: str, sent: bytes, content_type: str = "application/json") -> object:
                answer = await original(path, sent, content_type)
                if sent != wild:
                    return answer
                server_of.successes += 1  # another one was answered meanwhile
                return type(answer)(status=503, headers={"Retry-After": "0"}, body=b"")

            server_of.client.post = post  # type: ignore[method-assign,assignment]
            return await pool.post(CHAT, wild)

        reply = with_pool([server], work)
        assert (reply.status, server.posts) == (503, 20)


def test_a_request_has_its_time_from_when_a_server_has_it() -> None:
    """Mutant: a limit that runs while it waits for its turn, so that a queue of requests fails."""
    with Hostile(latency=0.3, capacity=1) as server:

        async def work(pool: Pool, count: int) -> list[object]:
            posts = (pool.post(CHAT, body(number)) for number in range(count))
            return list(await asyncio.gather(*posts, return_exceptions=True))

        slow = timedelta(seconds=0.05)
        failed = with_pool([server], lambda pool: work(pool, 3), timeout=slow)
        assert [error.code for error in failed if isinstance(error, NotSent)] == ["request_timeout"] * 3
        all_take = timedelta(seconds=2.2)
        in_time = with_pool([server], lambda pool: work(pool, 8), timeout=all_take, max_inflight=1)
        assert all(isinstance(reply, Reply) for reply in in_time)


def test_a_key_comes_from_the_environment_and_is_seen_nowhere(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A server that repeats it in its error. Mutant: a client that passes an error on as it is."""
    monkeypatch.setenv("THE_KEY", "very-secret-key")
    with Hostile(key="very-secret-key") as server:
        replies = with_pool([server], lambda pool: answer_all(pool, 3), api_key_env="THE_KEY")
        assert len(replies) == 3
        server.key = "another"

        async def work(pool: Pool) -> Standing | Block:
            return pool.standing("m")

        block = with_pool([server], work, api_key_env="THE_KEY")
        assert isinstance(block, Block)
        assert "refuses the key (HTTP 401): Incorrect API key provided: Bearer ***" in block.reason
        assert block.hint == "export THE_KEY=…, then restart the worker"
        assert "very-secret-key" not in caplog.text + block.reason


def test_closing_ends_what_waits() -> None:
    """Mutant: a worker that hangs at its stop, for a request that waits for a dead server."""
    with Hostile() as server:
        server.die()

        async def work(pool: Pool) -> None:
            posting = asyncio.create_task(pool.post(CHAT, body(1)))
            await asyncio.sleep(0)
            await pool.close()
            with pytest.raises(EngineDied, match="were closed"):
                await posting
            with pytest.raises(EngineDied, match="were closed"):
                await pool.post(CHAT, body(2))

        with_pool([server], work)
