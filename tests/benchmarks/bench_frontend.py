"""Measure the front end's CPU a request: vbatch's way through vLLM's app, and vLLM's serving handler alone.

    python -m tests.benchmarks.bench_frontend [--requests N] [--rounds N]

Both ask the same engine (the real vLLM, SmolLM2-135M on the CPU) the same chats, alternately, with the same
number in flight. CPU is that of this process, which the engine's own is not part of. The handler's figure
holds parsing the body and serialising the answer, which any caller has to do.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec

from tests.rigs.model import ENGINE_ARGS, model_folder
from vbatch.engine import vllm

MODEL = "smol"
URL = "/v1/chat/completions"
INFLIGHT = 64

Ask = Callable[[bytes], Awaitable[bytes]]


def main() -> None:
    """Run the benchmark and print one line a way and the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--rounds", type=int, default=4)
    options = parser.parse_args()
    asyncio.run(_compare(options.requests, options.rounds))


async def _compare(requests: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as logs:
        engine = await vllm.load(
            model=MODEL,
            path=str(model_folder()),
            args=ENGINE_ARGS,
            title_prefix="vbatch-bench",
            log_dir=Path(logs),
        )
        try:
            ways: dict[str, Ask] = {"vbatch": _through_vbatch(engine), "handler": _through_handler(engine)}
            bodies = [_body(number) for number in range(requests)]
            costs: dict[str, list[float]] = {name: [] for name in ways}
            for ask in ways.values():
                await _cost(ask, bodies)
            for _ in range(rounds):
                for name, ask in ways.items():
                    costs[name].append(await _cost(ask, bodies))
        finally:
            await engine.close()
    medians = {name: statistics.median(values) for name, values in costs.items()}
    for name, values in costs.items():
        spread = f"{min(values) * 1000:.2f} to {max(values) * 1000:.2f}"
        print(f"{name:8} {medians[name] * 1000:.2f} ms of CPU a request ({spread} in {rounds} rounds)")
    print(f"ratio    {medians['vbatch'] / medians['handler']:.2f}")


async def _cost(ask: Ask, bodies: list[bytes]) -> float:
    """Return the seconds of CPU that one request takes."""
    queue = iter(bodies)

    async def work() -> None:
        for body in queue:
            await ask(body)

    before = time.process_time()
    await asyncio.gather(*(work() for _ in range(INFLIGHT)))
    return (time.process_time() - before) / len(bodies)


def _through_vbatch(engine: vllm.VllmEngine) -> Ask:
    async def ask(body: bytes) -> bytes:
        reply = await engine.post(URL, body)
        assert reply.status == 200, reply
        return reply.body

    return ask


def _through_handler(engine: vllm.VllmEngine) -> Ask:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse

    app: Any = engine.app
    handler = app.state.openai_serving_chat

    async def ask(body: bytes) -> bytes:
        answer = await handler.create_chat_completion(ChatCompletionRequest.model_validate_json(body))
        assert isinstance(answer, ChatCompletionResponse), answer
        text: str = answer.model_dump_json()
        return text.encode()

    return ask


def _body(number: int) -> bytes:
    question = f"Question {number}: what comes to mind when you read the number {number * 7}? " * 5
    messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": question}]
    return msgspec.json.encode({"model": MODEL, "messages": messages, "max_tokens": 8, "temperature": 0})


if __name__ == "__main__":
    main()
