"""Short prompts are rendered in the event loop, all others in vLLM's thread."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from tests.engine.conftest import MODEL, Loaded
from vbatch.engine.rendering import SHORT, Rendering

SHORT_BODY, LONG_BODY = b"s" * SHORT, b"l" * (SHORT + 1)


@contextmanager
def renderer(
    *, runner_type: str = "generate", images: bool = False, own_templates: bool = False
) -> Iterator[tuple[Rendering, ThreadPoolExecutor]]:
    """Yield where the prompts of such an engine are rendered, and the thread of its renderer."""
    started: Any = SimpleNamespace(
        llm=SimpleNamespace(
            renderer=SimpleNamespace(_executor=ThreadPoolExecutor(max_workers=1)),
            model_config=SimpleNamespace(runner_type=runner_type, supports_multimodal_inputs=images),
        ),
        arguments=SimpleNamespace(trust_request_chat_template=own_templates),
    )
    with started.llm.renderer._executor as executor:
        yield Rendering(started), executor


async def in_loop(executor: ThreadPoolExecutor) -> bool:
    """Return whether what is handed to this executor runs in the event loop, which is in this thread."""
    where = await asyncio.get_running_loop().run_in_executor(executor, threading.get_ident)
    return where == threading.get_ident()


def test_a_short_prompt_is_rendered_in_the_event_loop() -> None:
    """Mutant: with ``if True`` in ``_run`` each of them costs the front end twice as much, and nothing says so."""
    with renderer() as (rendering, executor), rendering.of(SHORT_BODY):
        assert asyncio.run(in_loop(executor))


def test_a_long_prompt_is_rendered_in_the_thread() -> None:
    """Mutant: with ``_in_loop.set(True)`` a prompt of a million bytes keeps the loop from all other requests."""
    with renderer() as (rendering, executor), rendering.of(LONG_BODY):
        assert not asyncio.run(in_loop(executor))


def test_after_a_short_prompt_the_thread_is_used_again() -> None:
    """For other clients' requests, say. Mutant: without ``_in_loop.reset`` they are rendered in the loop."""
    with renderer() as (rendering, executor):
        with rendering.of(SHORT_BODY):
            pass
        assert not asyncio.run(in_loop(executor))


def test_requests_at_the_same_time_are_rendered_each_in_its_place() -> None:
    """Mutant: with an attribute in place of the context variable the last one decides for all."""

    async def asked(body: bytes, rendering: Rendering, executor: ThreadPoolExecutor) -> bool:
        with rendering.of(body):
            await asyncio.sleep(0)
            return await in_loop(executor)

    async def both(rendering: Rendering, executor: ThreadPoolExecutor) -> list[bool]:
        return await asyncio.gather(*(asked(body, rendering, executor) for body in (SHORT_BODY, LONG_BODY)))

    with renderer() as (rendering, executor):
        assert asyncio.run(both(rendering, executor)) == [True, False]


def test_a_tokenizer_is_never_used_in_two_threads_at_once() -> None:
    """Mutant: without ``self._in_thread or`` the short prompt is rendered beside the long one."""
    free, began = threading.Event(), threading.Event()

    def long_work() -> None:
        began.set()
        assert free.wait(60)

    async def scenario(rendering: Rendering, executor: ThreadPoolExecutor) -> tuple[bool, bool]:
        with rendering.of(LONG_BODY):
            long = asyncio.get_running_loop().run_in_executor(executor, long_work)
        began.wait(60)
        with rendering.of(SHORT_BODY):
            short = asyncio.ensure_future(in_loop(executor))
            await asyncio.sleep(0)
            free.set()
            beside = await short
            await long
            return beside, await in_loop(executor)

    with renderer() as (rendering, executor):
        assert asyncio.run(scenario(rendering, executor)) == (False, True)


def test_what_rendering_raises_reaches_the_request() -> None:
    """vLLM makes an answer of it. Mutant: without ``set_exception`` the request waits for ever."""

    def fail() -> None:
        raise ValueError("no such role")

    async def scenario(executor: ThreadPoolExecutor) -> None:
        with pytest.raises(ValueError, match="no such role"):
            await asyncio.wait_for(asyncio.get_running_loop().run_in_executor(executor, fail), 60)

    with renderer() as (rendering, executor), rendering.of(SHORT_BODY):
        asyncio.run(scenario(executor))


@pytest.mark.parametrize(
    "engine",
    [
        pytest.param({"own_templates": True}, id="templates of requests, which may run for ever"),
        pytest.param(
            {"runner_type": "pooling", "images": True}, id="images that are fetched while they are rendered"
        ),
    ],
)
def test_what_may_take_long_is_rendered_in_the_thread(engine: dict[str, Any]) -> None:
    """Mutant: with ``_is_brief`` returning True one such request holds the whole worker."""
    with renderer(**engine) as (rendering, executor), rendering.of(SHORT_BODY):
        assert not asyncio.run(in_loop(executor))


@pytest.mark.parametrize("engine", [{"images": True}, {"runner_type": "pooling"}], ids=["images", "pooling"])
def test_other_models_are_rendered_in_the_loop(engine: dict[str, Any]) -> None:
    """A model for generation fetches images before it renders; one for pooling without them has nothing to fetch."""
    with renderer(**engine) as (rendering, executor), rendering.of(SHORT_BODY):
        assert asyncio.run(in_loop(executor))


def test_a_renderer_without_a_thread_is_left_as_it_is() -> None:
    """A later vLLM may have none."""
    started: Any = SimpleNamespace(llm=SimpleNamespace(renderer=object()))
    with Rendering(started).of(SHORT_BODY):
        pass


@pytest.mark.vllm
@pytest.mark.parametrize(("words", "in_thread"), [("one two", 0), ("word " * 1000, 2)], ids=["short", "long"])
def test_vllm_renders_a_short_prompt_in_the_loop(
    loaded: Loaded, words: str, in_thread: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The template and the tokenizer of a long one are two calls. A vLLM that renders elsewhere fails here."""
    handed: list[Any] = []
    submit = loaded.engine._rendering._submit

    def seen(function: Any, *args: Any, **kwargs: Any) -> Any:
        handed.append(function)
        return submit(function, *args, **kwargs)

    monkeypatch.setattr(loaded.engine._rendering, "_submit", seen)

    reply, answer = loaded.post(
        "/v1/chat/completions", model=MODEL, messages=[{"role": "user", "content": words}], max_tokens=4
    )

    assert reply.status == 200, answer
    assert len(handed) == in_thread


@pytest.mark.vllm
def test_vllm_refuses_a_short_body_in_its_own_words(loaded: Loaded) -> None:
    """What its tokenizer finds too long is a 400, as when the thread finds it."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": "1 2 " * 900}], "max_tokens": 4}
    assert len(msgspec.json.encode(body)) <= SHORT

    reply, answer = loaded.post("/v1/chat/completions", **body)

    assert reply.status == 400
    assert "maximum context length" in answer["error"]["message"]
