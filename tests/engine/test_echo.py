"""The echo engine: OpenAI's shapes, the same answer every time, and what goes wrong on demand."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import msgspec
import pytest
from openai.types import Completion, CreateEmbeddingResponse
from openai.types.chat import ChatCompletion
from openai.types.responses import Response

from vbatch.engine import Blame, EngineDied, EngineStartFailed, Reply, echo

CHAT = "/v1/chat/completions"


def ask(url: str, **body: object) -> tuple[Reply, Any]:
    """Ask a fresh engine for its model."""

    async def scenario() -> Reply:
        engine = await echo.load(model="echo")
        return await engine.post(url, msgspec.json.encode({"model": "echo"} | body))

    reply = asyncio.run(scenario())
    return reply, msgspec.json.decode(reply.body)


def fault(word: str) -> bytes:
    return msgspec.json.encode(
        {"model": "echo", "messages": [{"role": "user", "content": "x"}], "metadata": {"vbatch_echo": word}}
    )


def test_another_model_is_refused() -> None:
    """And it is not the model's fault: no request fails for it. Mutant: ``load`` without the check."""
    with pytest.raises(EngineStartFailed, match="serves only the model echo") as refusal:
        asyncio.run(echo.load(model="qwen-8b"))
    assert (refusal.value.transient, refusal.value.blame) == (False, Blame.FLAGS)


def test_a_chat_is_answered_with_its_last_message() -> None:
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "one two three"}]},
    ]

    reply, body = ask(CHAT, messages=messages)

    completion = ChatCompletion.model_validate(body, strict=True)
    assert reply.status == 200
    assert completion.model == "echo"
    assert completion.choices[0].message.content == "one two three"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (5, 3)


def test_completions_responses_and_embeddings_have_their_shapes() -> None:
    completion = Completion.model_validate(ask("/v1/completions", prompt=["a b", "c"])[1], strict=True)
    response = Response.model_validate(ask("/v1/responses", input=[{"role": "user", "content": "a b"}])[1])
    embeddings = CreateEmbeddingResponse.model_validate(ask("/v1/embeddings", input=["a", "b"])[1])

    assert [choice.text for choice in completion.choices] == ["a b", "c"]
    assert response.output_text == "a b"
    assert response.usage is not None
    assert response.usage.total_tokens == 4
    assert len(embeddings.data) == 2
    assert embeddings.data[0].embedding != embeddings.data[1].embedding


def test_texts_are_scored_and_ranked() -> None:
    _, scores = ask("/v1/score", text_1="a b", text_2=["a b", "b c", "d"])
    _, ranks = ask("/rerank", query="a", documents=["b", "a"])

    assert [entry["score"] for entry in scores["data"]] == [1.0, pytest.approx(1 / 3), 0.0]
    assert [entry["index"] for entry in ranks["results"]] == [1, 0]


def test_the_same_body_always_gets_the_same_bytes() -> None:
    assert ask(CHAT, messages=[{"role": "user", "content": "x"}]) == ask(
        CHAT, messages=[{"role": "user", "content": "x"}]
    )


@pytest.mark.parametrize(
    ("url", "body", "status"),
    [
        (CHAT, {}, 400),
        (CHAT, {"messages": "no list"}, 400),
        (CHAT, {"model": "another", "messages": []}, 404),
        ("/v1/completions", {"prompt": 7}, 400),
        ("/v1/responses", {}, 400),
        ("/v1/score", {"text_1": ["a", "b"], "text_2": ["c"]}, 400),
        ("/v1/nothing", {}, 404),
        (CHAT, {"metadata": {"vbatch_echo": "no such word"}}, 400),
        (CHAT, {"metadata": {"vbatch_echo": "slow:long"}}, 400),
    ],
)
def test_a_bad_request_gets_an_error_object(url: str, body: dict[str, object], status: int) -> None:
    reply, answer = ask(url, **body)

    assert reply.status == status
    assert answer["error"]["code"] == status
    assert answer["error"]["message"]
    assert set(answer["error"]) == {"message", "type", "param", "code"}


def test_a_body_that_is_no_json_gets_an_error_object() -> None:
    async def scenario() -> Reply:
        return await (await echo.load(model="echo")).post(CHAT, b"{")

    assert asyncio.run(scenario()).status == 400


def test_errors_on_demand() -> None:
    async def scenario() -> None:
        engine = await echo.load(model="echo")
        assert (await engine.post(CHAT, fault("error400"))).status == 400
        assert [(await engine.post(CHAT, fault("error500"))).status for _ in range(4)] == [500] * 4
        assert [(await engine.post(CHAT, fault("error500:2"))).status for _ in range(3)] == [500, 500, 200]

    asyncio.run(scenario())


def test_latency_and_slowness_delay_an_answer() -> None:
    async def scenario() -> None:
        engine = await echo.load(model="echo", latency=timedelta(milliseconds=30))
        before = time.monotonic()
        await engine.post(CHAT, fault("slow:0.05"))
        assert time.monotonic() - before >= 0.08

    asyncio.run(scenario())


def test_exit_kills_the_engine_under_all_that_runs() -> None:
    async def scenario() -> None:
        engine = await echo.load(model="echo", latency=timedelta(seconds=30))
        running = [asyncio.create_task(engine.post(CHAT, fault(word))) for word in ("hang", "slow:30")]
        running.append(asyncio.create_task(engine.post(CHAT, fault("error500:0"))))
        await asyncio.sleep(0.01)
        with pytest.raises(EngineDied):
            await engine.post(CHAT, fault("exit"))
        results = await asyncio.gather(*running, return_exceptions=True)
        assert all(isinstance(result, EngineDied) for result in results)
        assert engine.died == "the echo engine exited, as vbatch_echo asked"
        with pytest.raises(EngineDied):
            await engine.post(CHAT, fault("error400"))

    asyncio.run(scenario())


def test_a_hanging_request_can_be_cancelled() -> None:
    async def scenario() -> None:
        engine = await echo.load(model="echo")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.02):
                await engine.post(CHAT, fault("hang"))
        assert engine.died is None

    asyncio.run(scenario())


def test_kill_ends_the_whole_process() -> None:
    script = (
        "import asyncio; from vbatch.engine import echo; "
        f"asyncio.run(asyncio.run(echo.load(model='echo')).post({CHAT!r}, {fault('kill')!r}))"
    )

    done = subprocess.run([sys.executable, "-c", script], check=False)

    assert done.returncode == -signal.SIGKILL


def test_progress_rises_with_answers_alone() -> None:
    async def scenario(check: Callable[[bool], None]) -> None:
        engine = await echo.load(model="echo")
        await engine.post(CHAT, fault("error400"))
        before = engine.progress
        hanging = asyncio.create_task(engine.post(CHAT, fault("hang")))
        await asyncio.sleep(0.01)
        check(before > 0 and engine.progress == before)
        hanging.cancel()

    results: list[bool] = []
    asyncio.run(scenario(results.append))
    assert results == [True]
