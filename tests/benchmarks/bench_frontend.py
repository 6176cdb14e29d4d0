"""What the front end costs: the CPU of the worker's process per request, on an engine whose tokens are there at once.

    python -m tests.benchmarks.bench_frontend [--requests 2000] [--rounds 4] [--step 0.005] [--tokens 8]
                                             [--prompt 340] [--pooling] [--texts 1] [--at-once] [--before CHECKOUT]

The engine is vLLM's (``tests.rigs.instant``): its process, scheduler and socket, with a step that takes ``--step``
seconds and computes nothing; with ``--at-once`` one step has the whole answer. Alternating in one run: ``worker`` is a
whole one that claims, answers and saves durably in SQLite and writes the files; ``direct`` is vbatch's way into vLLM
alone, and ``thread`` the same with every prompt rendered in vLLM's thread; ``app`` is the way of a client over HTTP,
without the socket; ``handler`` calls vLLM's serving handler, parses the body and serialises the answer, which any
caller has to do; ``engine`` is what the engine's own process takes beside ``direct``, and is counted nowhere else. With
``--before`` a worker of another checkout takes its turns too.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import msgspec
import psutil

from tests.rigs.model import ENGINE_ARGS, model_folder
from vbatch.engine import asgi, rendering, vllm

ROOT = Path(__file__).parent.parent.parent
MODEL = "smol"
CHAT, EMBEDDINGS = "/v1/chat/completions", "/v1/embeddings"
INSTANT = ("--distributed-executor-backend", "tests.rigs.instant.InstantExecutor")
POOLING = ("--runner", "pooling", "--convert", "embed")
INFLIGHT = 160  # what a worker has in flight on a CPU

Ask = Callable[[bytes], Awaitable[bytes]]
Cost = tuple[float, float]  # seconds of CPU and of time, per request


def main() -> None:
    """Run the benchmark and print one line for each way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--step", type=float, default=0.005)
    parser.add_argument("--tokens", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=340, help="characters of each prompt")
    parser.add_argument("--pooling", action="store_true")
    parser.add_argument("--texts", type=int, default=1, help="texts of each request for embeddings")
    parser.add_argument("--at-once", action="store_true")
    parser.add_argument("--before", type=Path, help="another checkout of vbatch to compare with")
    options = parser.parse_args()
    step = ("--additional-config", json.dumps({"step": options.step, "at_once": options.at_once}))
    flags = [*ENGINE_ARGS, *INSTANT, *step]
    if options.pooling:
        flags += POOLING
    if options.at_once:
        flags += ["--no-async-scheduling"]
    bodies = [
        _body(number, options.prompt, options.tokens, texts=options.texts if options.pooling else 0)
        for number in range(options.requests)
    ]
    url = EMBEDDINGS if options.pooling else CHAT
    model = model_folder()
    costs: dict[str, list[Cost]] = {}
    checkouts = {"before": options.before.resolve()} if options.before else {}
    with tempfile.TemporaryDirectory() as name, asyncio.Runner() as runner, ExitStack() as stack:
        ways: dict[str, Callable[[], Cost]] = {}
        for way, checkout in {**checkouts, "worker": ROOT}.items():
            work = stack.enter_context(_worker(Path(name) / way, checkout, model, flags))
            ways[way] = lambda work=work: work(url, bodies)  # type: ignore[misc]
        engine = runner.run(
            vllm.load(
                model=MODEL, path=str(model), args=flags, title_prefix="vbatch-bench", log_dir=Path(name)
            )
        )
        try:
            for way, ask in (
                ("direct", _through_vbatch(engine, url)),
                ("thread", _through_vbatch(engine, url, in_loop=False)),
                ("app", _through_app(engine, url)),
                ("handler", _through_handler(engine, url)),
            ):
                ways[way] = lambda ask=ask: runner.run(_cost(ask, bodies))  # type: ignore[misc]
            (process,) = engine._children
            core = psutil.Process(process.pid)
            for number in range(options.rounds + 1):
                for way, cost in ways.items():
                    before = _used(core)
                    measured = cost()
                    if number:  # the first warms up
                        costs.setdefault(way, []).append(measured)
                    if number and way == "direct":
                        used = (_used(core) - before) / len(bodies)
                        costs.setdefault("engine", []).append((used, measured[1]))
        finally:
            runner.run(engine.close())
    for way, found in costs.items():
        cpu = sorted(1000 * each for each, _ in found)
        print(
            f"{way:8} {statistics.median(cpu):.2f} ms of CPU a request ({cpu[0]:.2f} to {cpu[-1]:.2f} in "
            f"{len(cpu)} rounds), {1 / min(each for _, each in found):,.0f}/s at best"
        )


@contextmanager
def _worker(
    folder: Path, checkout: Path, model: Path, flags: list[str]
) -> Iterator[Callable[[str, list[bytes]], Cost]]:
    """Have a worker with the model loaded; yield what measures one batch of it."""
    folder.mkdir()
    (folder / "config.toml").write_text(f'[models."{MODEL}"]\npath = "{model}"\n')
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(checkout), str(ROOT)]),  # the step engine is of this checkout
        "VBATCH_CONFIG": str(folder / "config.toml"),
        "VBATCH_DATABASE_URL": f"sqlite:///{folder / 'vbatch.db'}",
        "VBATCH_STATE_DIR": str(folder / "state"),
    }
    command = [sys.executable, "-m", "vbatch"]
    with (folder / "worker.log").open("w") as log:
        process = subprocess.Popen(
            [*command, "run-worker", "--preload", MODEL, "--", *flags],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=environment,
        )
    seen = psutil.Process(process.pid)
    numbers = iter(range(1_000_000))

    def batch(url: str, bodies: list[bytes]) -> Cost:
        source = folder / f"{next(numbers)}.jsonl"
        with source.open("w") as file:
            for number, body in enumerate(bodies):
                line = {"custom_id": str(number), "method": "POST", "url": url, "body": json.loads(body)}
                file.write(json.dumps(line) + "\n")
        before, began = _used(seen), time.perf_counter()
        done = subprocess.run(
            [*command, "submit", str(source), "--wait"],
            capture_output=True,
            check=False,
            cwd=folder,
            env=environment,
        )
        used, took = _used(seen) - before, time.perf_counter() - began
        lines = source.with_suffix(".output.jsonl").read_bytes().splitlines() if done.returncode == 0 else []
        if len(lines) != len(bodies):
            raise SystemExit(
                f"{len(lines)} answers: {done.stderr.decode()}\n{(folder / 'worker.log').read_text()}"
            )
        return used / len(bodies), took / len(bodies)

    try:
        yield batch
    finally:
        process.terminate()
        process.wait()


def _used(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


async def _cost(ask: Ask, bodies: list[bytes]) -> Cost:
    queue = iter(bodies)

    async def work() -> None:
        for body in queue:
            await ask(body)

    before, began = time.process_time(), time.perf_counter()
    await asyncio.gather(*(work() for _ in range(INFLIGHT)))
    used, took = time.process_time() - before, time.perf_counter() - began
    return used / len(bodies), took / len(bodies)


def _through_vbatch(engine: vllm.VllmEngine, url: str, *, in_loop: bool = True) -> Ask:
    async def ask(body: bytes) -> bytes:
        engine._rendering.limit = rendering.SHORT if in_loop else 0
        reply = await engine.post(url, body)
        assert reply.status == 200, reply
        return reply.body

    return ask


def _through_app(engine: vllm.VllmEngine, url: str) -> Ask:
    async def ask(body: bytes) -> bytes:
        reply = await asgi.post(engine.app, url, body)
        assert reply.status == 200, reply
        return reply.body

    return ask


def _through_handler(engine: vllm.VllmEngine, url: str) -> Ask:
    from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
    from vllm.entrypoints.pooling.embed.protocol import EmbeddingCompletionRequest

    state: Any = engine.app.state

    async def chat(body: bytes) -> bytes:
        answer = await state.openai_serving_chat.create_chat_completion(
            ChatCompletionRequest.model_validate_json(body)
        )
        text: str = answer.model_dump_json()
        return text.encode()

    async def embed(body: bytes) -> bytes:
        answer = await state.serving_embedding(EmbeddingCompletionRequest.model_validate_json(body))
        return bytes(answer.body)

    return embed if url == EMBEDDINGS else chat


def _body(number: int, prompt: int, tokens: int, *, texts: int) -> bytes:
    """Return one for so many embeddings; for a chat where that is 0."""
    sentence = f"Question {number}: what comes to mind when you read the number {number * 7}? "
    question = (sentence * (1 + prompt // len(sentence)))[:prompt]
    if texts:
        return msgspec.json.encode({"model": MODEL, "input": [question] * texts})
    messages = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": question}]
    return msgspec.json.encode(
        {"model": MODEL, "messages": messages, "max_tokens": tokens, "ignore_eos": True, "temperature": 0}
    )


if __name__ == "__main__":
    main()
