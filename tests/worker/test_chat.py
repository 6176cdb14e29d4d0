"""Chat beside the batch, at the socket of a worker on an engine that echoes: what chat gets, what the batch keeps."""

from __future__ import annotations

import asyncio
import stat
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.chatting import URL, Client, body, happened, work_with
from tests.rigs.filling import take_in
from tests.rigs.parrot import PARROT
from tests.rigs.stores import mostly_sqlite as database_url  # noqa: F401  (a fixture)
from vbatch import pausing
from vbatch.engine import Loaded
from vbatch.engine.echo import EchoEngine
from vbatch.engine.kinds import KINDS, Load
from vbatch.store import Store, catalog
from vbatch.system import sockets
from vbatch.worker import loop as loop_module
from vbatch.worker.context import Context


@pytest.fixture
def chatting(context: Context, monkeypatch: pytest.MonkeyPatch, engines: list[Parrot]) -> Context:
    """A worker with chat that has the model ``m`` loaded, and does not end by itself."""
    monkeypatch.setattr(loop_module, "RELOAD_PAUSE", 0.02)
    settings = context.settings.model_copy(update={"chat": True, "preload": "m"})
    return replace(context, drain=False, settings=settings)


class Parrot(EchoEngine):
    """Counts how many requests of the batch it has at once, and can be killed."""

    running = most = 0

    async def post(self, url: str, body: bytes) -> Any:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            return await super().post(url, body)
        finally:
            self.running -= 1

    @property
    def held(self) -> int:
        return len(self._waiting)

    def hang(self) -> None:
        """Give nothing any more, without dying."""
        self._latency = 10_000.0


@pytest.fixture
def engines(monkeypatch: pytest.MonkeyPatch) -> list[Parrot]:
    """The engines that were loaded, in turn. Their latency is that of the settings."""
    loaded: list[Parrot] = []

    async def load(load: Load) -> Loaded:
        engine = Parrot(load.model, load.echo_latency)
        engine.sequences, engine.max_inflight = 4, 5
        loaded.append(engine)
        return engine

    monkeypatch.setitem(KINDS, PARROT.name, replace(PARROT, load=load))
    return loaded


def with_settings(context: Context, **changes: Any) -> Context:
    return replace(context, settings=context.settings.model_copy(update=changes))


def batch_of(store: Store, tmp_path: Path, count: int, *, model: str = "m", fault: str = "") -> int:
    """Submit requests of a model; a fault makes each of them cause it."""
    fields = b'"metadata": {"vbatch_echo": "%b"}, ' % fault.encode() if fault else b""
    one = b'{%b"model": "%b", "messages": [{"role": "user", "content": "hello"}]}' % (fields, model.encode())
    paths = {"output_path": str(tmp_path / f"{model}.out"), "error_path": str(tmp_path / f"{model}.err")}
    return take_in(store, [model] * count, body=one, **paths).pk


def counts(store: Store, pk: int) -> tuple[int, int]:
    found = catalog.by_pk(store, pk=pk).counts
    return found.completed, found.failed


def text_of(events: list[Any]) -> str:
    return "".join(
        event["choices"][0]["delta"].get("content", "") for event in events if isinstance(event, dict)
    )


def test_chat_is_answered_at_a_socket_of_its_own(chatting: Context) -> None:
    """Mutants: the mode is not set; any path is passed on; a stream is collected first."""
    path = sockets.path_of(chatting.settings.state_dir, chatting.worker)

    async def chat(client: Client) -> None:
        await happened(client.models)
        assert await client.models() == ["m"]
        status, answer = await client.chat("hello there")
        assert (status, answer["choices"][0]["message"]["content"]) == (200, "hello there")
        assert answer == (await client.chat("hello there"))[1]
        events = await client.stream("one two three")
        assert events[-1] == "[DONE]"
        assert len(events) == 5
        assert text_of(events) == "one two three"
        assert (await client.chat("x", model="other"))[0] == 404
        for url in ("/v1/completions", "/v1/responses", "/v1/embeddings"):
            asked = {"model": "m", "prompt": "a b", "input": "a b"}
            assert (await client.http.post(url, json=asked)).status_code == 200, url
            assert "[DONE]" in (await client.http.post(url, json=asked | {"stream": True})).text
        assert (await client.http.post("/v1/score", json={})).status_code == 404
        assert (await client.http.get("/metrics")).status_code == 404
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700

    work_with(chatting, chat)
    assert sockets.found(chatting.settings.state_dir) == []


def test_without_chat_there_is_no_socket(context: Context, store: Store, tmp_path: Path) -> None:
    pk = batch_of(store, tmp_path, 3)
    asyncio.run(_alone(context))
    assert counts(store, pk) == (3, 0)
    assert not (context.settings.state_dir / sockets.FOLDER).exists()


async def _alone(context: Context) -> None:
    context.stop.attach(asyncio.get_running_loop())
    await loop_module.WorkLoop(context).run()


def test_sockets_of_dead_workers_are_removed_at_the_start(chatting: Context) -> None:
    """Mutant: the sweep is left out."""
    sockets.listen(chatting.settings.state_dir, "worker_dead").close()
    with sockets.listen(chatting.settings.state_dir, "worker_alive"):

        async def chat(client: Client) -> None:
            await happened(client.models)
            names = [sockets.worker_of(path) for path in sockets.found(chatting.settings.state_dir)]
            assert sorted(names) == sorted(["worker_alive", chatting.worker])

        work_with(chatting, chat)


def test_a_long_state_folder_has_a_socket(chatting: Context, tmp_path: Path) -> None:
    """Mutant: the path itself is the address: "AF_UNIX path too long"."""
    folder = tmp_path / ("long" * 30)
    context = with_settings(chatting, state_dir=folder)

    async def chat(client: Client) -> None:
        await happened(client.models)

    work_with(context, chat)
    assert (folder / sockets.FOLDER).is_dir()


def test_a_batch_leaves_sequences_free(
    chatting: Context, store: Store, tmp_path: Path, engines: list[Parrot]
) -> None:
    """Mutants: the limit ignores the reserve; the reserve holds without chat, too."""
    context = with_settings(chatting, echo_latency_ms=20, chat_reserve=2)
    pk = batch_of(store, tmp_path, 40)

    async def chat(_client: Client) -> None:
        await happened(lambda: counts(store, pk) == (40, 0))

    work_with(context, chat)
    assert engines[0].most == 2


def test_a_client_that_leaves_ends_its_chat(chatting: Context, engines: list[Parrot]) -> None:
    """Mutant: the application is never told of the disconnect; the chat holds its sequence for ever."""

    async def chat(client: Client) -> None:
        await happened(client.models)
        asking = asyncio.create_task(client.chat("x", fault="hang"))
        await happened(lambda: engines[0].held)
        asking.cancel()
        await happened(lambda: not engines[0].held and not chatting.view.snapshot.chats)

    work_with(chatting, chat)


def test_an_engine_is_not_unloaded_under_a_chat(chatting: Context, engines: list[Parrot]) -> None:
    """The idle time begins at the end of the last chat. Mutant: ``last_at`` is not asked."""
    context = with_settings(chatting, idle_unload=timedelta(seconds=0.2), echo_latency_ms=500)

    async def chat(client: Client) -> None:
        await happened(client.models)
        begun = asyncio.Event()
        streaming = asyncio.create_task(client.stream("one two three four five six", begun=begun))
        await begun.wait()
        await asyncio.sleep(1.2)
        assert (await client.chat("x"))[0] == 200, "it is not about to be unloaded"
        assert (await streaming)[-1] == "[DONE]"
        await happened(lambda: context.view.snapshot.model is None)
        status, answer = await client.chat("x")
        assert (status, answer["error"]["code"]) == (503, "model_not_loaded")
        assert await client.models() == []

    work_with(context, chat)
    assert len(engines) == 1


@pytest.mark.parametrize("limit", [30.0, 0.3])
def test_a_swap_waits_for_chats(
    chatting: Context, store: Store, tmp_path: Path, engines: list[Parrot], *, limit: float
) -> None:
    """Up to a limit, and begins none meanwhile. Mutants: no waiting; no refusal; no limit."""
    context = with_settings(chatting, drain_limit=timedelta(seconds=limit), echo_latency_ms=200)

    async def chat(client: Client) -> None:
        await happened(client.models)
        begun = asyncio.Event()
        words = " ".join(["word"] * 12)
        streaming = asyncio.create_task(client.stream(words, begun=begun))
        await begun.wait()
        pk = batch_of(store, tmp_path, 3, model="other")
        refused = await refusal(client)
        assert refused.headers["retry-after"] == "30"
        assert refused.json()["error"]["code"] == "worker_busy"
        events = await streaming
        if limit > 1:
            assert events[-1] == "[DONE]"
            assert text_of(events) == words
        else:
            assert events[-2]["error"]["code"] == "worker_busy"
            assert events[-1] == "broken"
        await happened(lambda: counts(store, pk) == (3, 0))
        assert await client.models() == ["other"]

    work_with(context, chat)
    assert len(engines) == 2


async def refusal(client: Client) -> Any:
    """Ask until the worker refuses."""
    while (answer := await client.http.post(URL, json=body("x"))).status_code == 200:
        pass
    return answer


@pytest.mark.parametrize("limit", [30.0, 0.3])
def test_a_stop_lets_chats_finish(chatting: Context, engines: list[Parrot], *, limit: float) -> None:
    """Up to the limit of the stop. Mutants: the engine is closed at once; no refusal; no limit."""
    context = with_settings(chatting, drain_limit=timedelta(seconds=limit), echo_latency_ms=200)

    async def chat(client: Client) -> None:
        await happened(client.models)
        begun = asyncio.Event()
        streaming = asyncio.create_task(client.stream(" ".join(["word"] * 12), begun=begun))
        await begun.wait()
        context.stop.request()
        assert (await refusal(client)).json()["error"]["message"] == "the worker is stopping"
        assert (await streaming)[-1] == ("[DONE]" if limit > 1 else "broken")

    work_with(context, chat)
    assert engines[0].died == "the echo engine was closed"


@pytest.mark.parametrize("now", [False, True])
def test_a_pause_ends_chat_until_it_is_over(chatting: Context, engines: list[Parrot], *, now: bool) -> None:
    """What runs finishes, or with ``--now`` is broken off. Mutant: a chat keeps the GPU's memory in a pause."""
    context = with_settings(chatting, echo_latency_ms=200)

    async def chat(client: Client) -> None:
        await happened(client.models)
        begun = asyncio.Event()
        streaming = asyncio.create_task(client.stream(" ".join(["word"] * 12), begun=begun))
        await begun.wait()
        pausing.pause(context.settings, everyone=False, now=now)
        await refusal(client)
        assert (await streaming)[-1] == ("broken" if now else "[DONE]")
        await happened(lambda: engines[0].died)
        await happened(lambda: context.view.snapshot.state == "paused")
        assert "paused" in (await refusal(client)).json()["error"]["message"]
        pausing.resume(context.settings, everyone=False)
        await happened(client.models)
        assert (await client.chat("x"))[0] == 200

    work_with(context, chat)
    assert len(engines) == 2


def test_a_chat_that_kills_the_engine_costs_no_request(
    chatting: Context, store: Store, tmp_path: Path, engines: list[Parrot]
) -> None:
    """Again and again, beside a batch: a suspect runs without chats, so that no request is convicted of them."""
    context = with_settings(chatting, max_inflight=1, flush_interval=timedelta(seconds=0.02))
    pk = batch_of(store, tmp_path, 12, fault="slow:0.2")
    answers: list[Any] = []

    async def chat(client: Client) -> None:
        while sum(counts(store, pk)) < 12:
            answers.append(await client.chat("x", fault="exit"))
            await asyncio.sleep(0.01)

    work_with(context, chat)
    assert counts(store, pk) == (12, 0)
    died = [answer for answer in answers if answer[1]["error"]["code"] == "engine_died"]
    assert len(died) >= 2
    assert {status for status, _ in answers} == {503}


def test_a_poisonous_request_is_found_beside_chats(chatting: Context, store: Store, tmp_path: Path) -> None:
    """Mutant: a crash beside chats is held against nothing: the batch never ends."""
    context = with_settings(chatting, max_inflight=2)
    pk = batch_of(store, tmp_path, 1, fault="exit")

    async def chat(client: Client) -> None:
        while sum(counts(store, pk)) < 1:
            await client.chat("x")
            await asyncio.sleep(0.01)

    work_with(context, chat)
    assert counts(store, pk) == (0, 1)


def test_nothing_of_a_dead_engine_is_sent(chatting: Context, engines: list[Parrot]) -> None:
    """A stream ends with an error and is not whole; the model is loaded again. Mutants: no look at ``died`` before a
    piece is sent; an engine that crashed at rest stays.
    """
    context = with_settings(chatting, echo_latency_ms=50)

    async def chat(client: Client) -> None:
        await happened(client.models)
        begun = asyncio.Event()
        streaming = asyncio.create_task(client.stream(" ".join(["word"] * 40), begun=begun))
        await begun.wait()
        await client.chat("x", fault="exit")
        events = await streaming
        assert events[-2]["error"]["code"] == "engine_died"
        assert "vbatch_echo asked" in events[-2]["error"]["message"]
        assert events[-1] == "broken"
        await happened(client.models)
        assert (await client.chat("y"))[0] == 200

    work_with(context, chat)
    assert len(engines) == 2
    assert context.view.snapshot.engine_crashes == 1


def test_an_engine_that_hangs_under_a_chat_is_restarted(chatting: Context, engines: list[Parrot]) -> None:
    """Mutant: only requests of the batch keep the watchdog awake."""
    context = with_settings(chatting, engine_stall=timedelta(seconds=0.5))

    async def chat(client: Client) -> None:
        await happened(client.models)
        status, answer = await client.chat("x", fault="hang")
        assert (status, answer["error"]["code"]) == (503, "worker_busy")
        assert "no progress" in answer["error"]["message"]
        await happened(client.models)

    work_with(context, chat)
    assert len(engines) == 2


def test_a_slow_client_is_no_hanging_engine(chatting: Context, engines: list[Parrot]) -> None:
    """It takes nothing of its answer for longer than ``engine_stall``. Mutant: every chat counts as work."""
    context = with_settings(chatting, engine_stall=timedelta(seconds=0.5))

    async def chat(client: Client) -> None:
        await happened(client.models)
        long = " ".join(["x" * 100_000] * 40)
        async with client.http.stream("POST", URL, json=body(long, stream=True)) as answer:
            await asyncio.sleep(3)
            assert context.view.snapshot.chats == 1, "it is not sent yet"
            assert (await answer.aread()).endswith(b"[DONE]\n\n")

    work_with(context, chat)
    assert len(engines) == 1


def test_answers_to_chat_are_progress_for_the_watchdog(
    chatting: Context, store: Store, tmp_path: Path, engines: list[Parrot]
) -> None:
    """One request of the batch is slow, chats are answered: the engine works. Mutant: chats raise no progress."""
    context = with_settings(chatting, engine_stall=timedelta(seconds=0.6))
    pk = batch_of(store, tmp_path, 1, fault="slow:2.5")

    async def chat(client: Client) -> None:
        await happened(client.models)
        while counts(store, pk) != (1, 0):
            assert (await client.chat("x"))[0] == 200
            await asyncio.sleep(0.1)

    work_with(context, chat)
    assert len(engines) == 1
