"""A worker whose engine are other servers: all models at once, each request one line, no command when one is back."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.commands import chats
from tests.rigs.filling import rows
from tests.rigs.hostile import Hostile, Temper
from tests.rigs.queued import Queued, queued
from tests.rigs.stores import mostly_sqlite as database_url  # noqa: F401  (a fixture)
from tests.rigs.waiting import SILENCE, until
from tests.rigs.workers import drain, kill, settings_in, start_worker
from vbatch.config.endpoints import EndpointSettings
from vbatch.engine.endpoint import configured
from vbatch.errors import ConfigError, OnlyBlocked
from vbatch.store import Store, blocked
from vbatch.worker import View
from vbatch.worker.context import Context
from vbatch.worker.pause import Pausing
from vbatch.worker.remote import RemoteLoop

MISFORTUNES = Temper(too_many=0.02, seconds=0.01, reset=0.02, truncated=0.02, stalls=0.005, fails=0.01)


def endpoints(*servers: Hostile, **more: Any) -> dict[str, EndpointSettings]:
    return {
        f"s{number}": EndpointSettings.model_validate({"url": server.url, **more})
        for number, server in enumerate(servers)
    }


def of(context: Context, tmp_path: Path, *servers: Hostile, stays: bool = False) -> Context:
    """Return a worker's surroundings in which these servers answer; one that ``stays`` does not end by itself."""
    settings = settings_in(tmp_path, engine="endpoint", endpoints=endpoints(*servers))
    return replace(context, settings=settings, drain=not stays, view=View(), pausing=Pausing())


def work(context: Context, *beside: Coroutine[None, None, None]) -> None:
    async def run() -> None:
        context.stop.attach(asyncio.get_running_loop())
        context.watchdog.attach()
        async with asyncio.timeout(SILENCE):
            await asyncio.gather(RemoteLoop(context).run(), *beside)

    asyncio.run(run())


async def once(happened: Any) -> None:
    """Wait until this is so, in the worker's own event loop."""
    while not happened():  # noqa: ASYNC110
        await asyncio.sleep(0.02)


def whole(batch: Queued, expected: Sequence[dict[str, object]]) -> None:
    lines = batch.lines()
    assert not lines.lost(expected)
    assert not lines.doubled
    assert not lines.errors
    assert all(answer == custom_id for custom_id, answer in lines.answers.items())


def test_one_worker_serves_several_models_at_several_servers(
    context: Context, store: Store, tmp_path: Path
) -> None:
    """Both servers misbehave by a seed; each request has one line, its own answer, and no failed attempt but 500.

    Mutants: a claim of one model at a time; a pool that fails what a server refused; a 429 that counts as an attempt.
    """
    expected = {model: chats(300, model=model, prefix=model) for model in ("m", "n")}
    with (
        Hostile("m", "n", temper=MISFORTUNES, seed=1, latency=0.005) as first,
        Hostile("m", temper=MISFORTUNES, seed=2, latency=0.005) as second,
    ):
        batches = {model: queued(store, tmp_path, lines, name=model) for model, lines in expected.items()}
        work(of(context, tmp_path, first, second))
        assert second.posts > 0
    for model, batch in batches.items():
        whole(batch, expected[model])


def test_what_no_server_has_waits_with_the_reason_until_one_has_it(
    context: Context, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rest is answered; a drain ends and names it; a worker that stays needs no command when the model is there.

    Mutants: a request that waits in the pool for ever; one that fails with 404; a block that is never looked at again.
    """
    monkeypatch.setattr("vbatch.engine.endpoint.watch.LOOK", 0.2)
    known, unknown = chats(20, model="m"), chats(20, model="x", prefix="x")
    with Hostile("m") as server:
        answered, waiting = queued(store, tmp_path, known), queued(store, tmp_path, unknown, name="x")
        with pytest.raises(OnlyBlocked) as raised:
            work(of(context, tmp_path, server))
        assert f"x: no endpoint has x (s0 ({server.url}))" in str(raised.value)
        whole(answered, known)
        (row,) = blocked.known(store)
        assert (row.model, row.url) == ("x", "")

        again = of(context, tmp_path, server, stays=True)

        async def comes() -> None:
            await once(lambda: "x" in again.view.snapshot.blocked)
            server.models.append("x")
            server.die()
            server.return_()
            await once(lambda: waiting.batch.status.final)
            again.stop.request()

        work(again, comes())
        whole(waiting, unknown)
        assert blocked.known(store) == []
        assert again.view.snapshot.blocked == {}


def test_a_route_that_no_server_has_blocks_itself_alone(
    context: Context, store: Store, tmp_path: Path
) -> None:
    """Mutants: a chat that waits beside it; requests that end with the router's 404."""
    embeddings = [
        {
            "custom_id": f"e-{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "m", "input": "text"},
        }
        for number in range(10)
    ]
    chat = chats(50, model="m")
    with Hostile("m") as server:
        server.lacks = frozenset({"/v1/embeddings"})
        wait, run = queued(store, tmp_path, embeddings, name="e"), queued(store, tmp_path, chat)
        with pytest.raises(OnlyBlocked, match="no model here can answer"):
            work(of(context, tmp_path, server))
        whole(run, chat)
        assert (wait.batch.counts.completed, wait.batch.counts.failed) == (0, 0)
        (row,) = blocked.known(store)
        assert (row.model, row.url) == ("m", "/v1/embeddings")
        assert "does not know the route (HTTP 404)" in row.reason


def test_a_revoked_key_fails_nothing(context: Context, store: Store, tmp_path: Path) -> None:
    """It is revoked in the middle; what is left waits, with the reason. Mutant: 401 as the answer of each request."""
    lines = chats(400, model="m")
    with Hostile("m", latency=0.01) as server:
        batch = queued(store, tmp_path, lines)

        async def revoke() -> None:
            await once(lambda: server.posts > 100)
            server.key = "another"

        with pytest.raises(OnlyBlocked):
            work(of(context, tmp_path, server), revoke())
        counts = batch.batch.counts
        assert counts.failed == 0
        assert 0 < counts.completed < 400
        assert "refuses the key (HTTP 401)" in blocked.known(store)[0].reason
        server.key = None
        work(of(context, tmp_path, server))
        whole(batch, lines)


def test_dead_servers_are_waited_for_and_suspect_no_request(
    context: Context, store: Store, tmp_path: Path
) -> None:
    """One dies for good, the other one returns. Mutants: a crash of the engine that halves chunks; a failed request."""
    lines = chats(400, model="m")
    with Hostile("m", latency=0.01) as dies, Hostile("m", latency=0.01) as returns:
        batch = queued(store, tmp_path, lines)
        context = of(context, tmp_path, dies, returns)

        async def night() -> None:
            await once(lambda: dies.posts > 20)
            dies.die()
            await once(lambda: returns.posts > 100)
            returns.die()
            await once(lambda: (context.view.snapshot.trouble or "").startswith("waiting for s"))
            assert returns.url in str(context.view.snapshot.note)
            returns.return_()

        work(context, night())
        whole(batch, lines)
        assert context.view.snapshot.trouble is not None, "the other one is still dead"
        assert sum(returns.answered.values()) > 200, "no less than half of it came from the one that lives"
    assert rows(store, "SELECT max(engine_crashes), max(worker_crashes) FROM chunk") == [(0, 0)]


def test_a_stop_does_not_wait_for_a_dead_server(context: Context, store: Store, tmp_path: Path) -> None:
    """What only waits is put back. Mutant: the drain's five minutes for requests that no server has."""
    with Hostile("m", latency=0.01) as server:
        batch = queued(store, tmp_path, chats(2000, model="m"))
        context = of(context, tmp_path, server, stays=True)

        async def stop() -> None:
            await once(lambda: server.posts > 50)
            server.die()
            await once(lambda: (context.view.snapshot.trouble or "").startswith("waiting for s"))
            context.stop.request()

        work(context, stop())
        counts = batch.batch.counts
        assert counts.failed == 0
        assert counts.completed >= sum(server.answered.values()) - 30
    assert rows(store, "SELECT count(*) FROM chunk WHERE state = 'running'") == [(0,)]


def test_a_worker_that_is_killed_loses_nothing(store: Store, tmp_path: Path) -> None:
    """SIGKILL in the middle; the next one finishes. Mutant: results that are saved only at the end of a chunk."""
    lines = chats(600, model="m")
    with Hostile("m", latency=0.01, temper=replace(MISFORTUNES, stalls=0.0)) as server:
        batch = queued(store, tmp_path, lines)
        settings: dict[str, Any] = {"engine": "endpoint", "endpoints": endpoints(server)}
        process = start_worker(batch.url, tmp_path, **settings)
        until(lambda: sum(server.answered.values()) > 150, progress=lambda: server.posts)
        kill(process)
        drain(batch.url, tmp_path, **settings)
        whole(batch, lines)


def test_what_only_a_person_can_fix_ends_the_worker_at_once(tmp_path: Path) -> None:
    """Mutants: a worker that begins without a key, or without the extra; a --preload that does nothing."""

    def endpoint(key: str | None) -> EndpointSettings:
        return EndpointSettings.model_validate({"url": "http://a", "api_key_env": key})

    cases: dict[str, dict[str, Any]] = {
        "no endpoint is configured": {},
        "NO_SUCH_KEY is not set": {"endpoints": {"a": endpoint("NO_SUCH_KEY")}},
        "loads no model": {"preload": "m", "endpoints": {"a": endpoint(None)}},
    }
    for words, settings in cases.items():
        with pytest.raises(ConfigError, match=words):
            configured.require(settings_in(tmp_path, engine="endpoint", **settings))
