"""What the worker does next: models that cannot be loaded, chunks that no worker holds. A real store, an echo."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.rigs.filling import answers_to, claim, new_batch, rows, take_in, worker
from tests.rigs.parrot import PARROT, parrot
from tests.rigs.waiting import SILENCE
from tests.rigs.workers import settings_in
from vbatch import batches
from vbatch.config.tables import ModelSettings
from vbatch.engine import Blame, Engine, EngineStartFailed, Loaded
from vbatch.engine.echo import EchoEngine
from vbatch.engine.kinds import KINDS, Load
from vbatch.errors import EngineUnavailable, ExitCode, StoreMisconfigured, VbatchError
from vbatch.protocol import BatchStatus
from vbatch.store import Store, blocked, catalog, ingest, queue, registry
from vbatch.system import processes
from vbatch.worker import models
from vbatch.worker.context import Context
from vbatch.worker.heartbeat import Watchdog
from vbatch.worker.loop import WorkLoop
from vbatch.worker.serving import Ended, Serving


def work(context: Context, *beside: Coroutine[None, None, None]) -> None:
    """Work until the queue is empty, or until what goes on beside it asks for a stop."""

    async def drain() -> None:
        context.stop.attach(asyncio.get_running_loop())
        context.watchdog.attach()
        async with asyncio.timeout(SILENCE):
            await asyncio.gather(WorkLoop(context).run(), *beside)

    asyncio.run(drain())


@pytest.fixture
def broken(monkeypatch: pytest.MonkeyPatch) -> dict[str, Blame]:
    """Models that do not load, and whose fault that is; all others do. Only loading is staged, nothing else."""
    faults: dict[str, Blame] = {}

    async def load(context: Context, model: str) -> Engine:
        if model in faults:
            raise EngineStartFailed(f"{model} is wrong", transient=False, blame=faults[model])
        return parrot(model)

    monkeypatch.setattr(models, "load", load)
    return faults


def batch_of(store: Store, tmp_path: Path, model: str, *, priority: int = 0) -> int:
    """Submit 10 requests of a model; one batch of each model and priority."""
    body = b'{"model": "%b", "messages": [{"role": "user", "content": "hello"}]}' % model.encode()
    paths = {
        "output_path": str(tmp_path / f"{model}-{priority}.output.jsonl"),
        "error_path": str(tmp_path / f"{model}-{priority}.errors.jsonl"),
    }
    return take_in(store, [model] * 10, body=body, priority=priority, **paths).pk


def counts(store: Store, pk: int) -> tuple[int, int]:
    found = catalog.by_pk(store, pk=pk).counts
    return found.completed, found.failed


@pytest.mark.parametrize("blame", [Blame.MODEL, Blame.UNKNOWN])
@pytest.mark.parametrize("first", ["bad", "good"])
def test_a_model_that_cannot_be_loaded_blocks_its_own_requests(
    context: Context, store: Store, tmp_path: Path, broken: dict[str, Blame], *, blame: Blame, first: str
) -> None:
    """They wait with the reason, the rest of the queue is answered, and a drain names them.

    Mutants: a worker that gives up over it, so that the queue behind it waits for ever; one that fails the requests.
    """
    broken["bad"] = blame
    pks = {
        model: batch_of(store, tmp_path, model) for model in sorted(("bad", "good"), key=lambda m: m != first)
    }
    with pytest.raises(EngineUnavailable, match="bad is wrong"):
        work(context)
    assert (counts(store, pks["bad"]), counts(store, pks["good"])) == ((0, 0), (10, 0))
    (known,) = blocked.known(store)
    assert (known.model, known.url, known.reason) == ("bad", "", "bad is wrong")
    found = batches.blocks(store)[pks["bad"]]
    assert found.entirely
    assert [(block.model, block.requests) for block in found.models] == [("bad", 10)]


def test_an_endpoint_that_a_model_cannot_do_blocks_alone(
    context: Context, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One reason for all of its requests, before any of them runs; the model's other requests are answered.

    Mutants: each request failed with 404; a worker that claims them again and again; one that waits with all.
    """

    async def load(load: Load) -> Loaded:
        engine = EchoEngine(load.model, timedelta(0))
        engine.endpoints = {"/v1/chat/completions", "/v1/completions"}
        return engine

    monkeypatch.setitem(KINDS, PARROT.name, replace(PARROT, load=load))
    chats = batch_of(store, tmp_path, "m")
    embeddings = embeddings_of(store, tmp_path, "m", priority=1)
    with pytest.raises(
        EngineUnavailable, match="was loaded for text; /v1/embeddings needs an embedding model"
    ):
        work(context)
    assert (counts(store, chats), counts(store, embeddings)) == ((10, 0), (0, 0))
    (block,) = batches.blocks(store)[embeddings].models
    assert (block.model, block.url, block.requests) == ("m", "/v1/embeddings", 5)


def embeddings_of(store: Store, tmp_path: Path, model: str, *, priority: int = 0) -> int:
    """Submit 5 requests for embeddings."""
    paths = {"output_path": str(tmp_path / "e.output.jsonl"), "error_path": str(tmp_path / "e.errors.jsonl")}
    new = new_batch(priority=priority, **paths)
    with ingest.ingest(store, new=new, submitter=processes.current()) as storing:
        for line in range(1, 6):
            storing.add(line, f"e-{line}", model, b'{"model": "m", "input": "hello"}', "/v1/embeddings")
        return storing.accept(endpoint="/v1/embeddings", input_sha256="sha").pk


def test_a_batch_that_comes_later_does_not_run_into_an_endpoint_either(
    context: Context, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is the model loaded again for it. Mutant: a look at what waits only after the load."""
    loads: list[str] = []

    async def load(load: Load) -> Loaded:
        loads.append(load.model)
        engine = EchoEngine(load.model, timedelta(seconds=0.3))
        engine.endpoints = {"/v1/chat/completions", "/v1/completions"}
        return engine

    monkeypatch.setitem(KINDS, PARROT.name, replace(PARROT, load=load))
    chats = batch_of(store, tmp_path, "m")
    pks: list[int] = []

    async def come_later() -> None:
        while context.view.snapshot.running == 0:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        pks.append(embeddings_of(store, tmp_path, "m"))

    with pytest.raises(EngineUnavailable, match="/v1/embeddings needs an embedding model"):
        work(context, come_later())
    assert (counts(store, chats), counts(store, pks[0])) == ((10, 0), (0, 0))
    assert loads == ["m"]


def test_an_endpoint_is_tried_again_when_its_model_has_changed(
    context: Context, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other flags in config.toml, say. Mutants: a block that stands until the worker is started again; no new load."""
    monkeypatch.setattr("vbatch.worker.blocked.LOOK", timedelta(seconds=0.1))
    flags: list[str] = []
    monkeypatch.setattr(models, "state_of", lambda _context, _model: tuple(flags))
    served = {"/v1/chat/completions", "/v1/completions"}

    async def load(load: Load) -> Loaded:
        engine = EchoEngine(load.model, timedelta(0))
        engine.endpoints = frozenset(served)
        return engine

    monkeypatch.setitem(KINDS, PARROT.name, replace(PARROT, load=load))
    context = replace(context, drain=False)
    pk = embeddings_of(store, tmp_path, "m")

    async def change() -> None:
        while not batches.blocks(store):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        served.add("/v1/embeddings")
        flags.append("--runner=pooling")
        while sum(counts(store, pk)) != 5:  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        context.stop.request()

    work(context, change())
    assert blocked.known(store) == []
    assert context.view.snapshot.blocked == {}
    assert context.view.snapshot.engine_loads == 2


def test_a_model_with_a_name_that_no_file_can_have_blocks_alone(
    context: Context, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: ``Path.is_dir``, which raises for a long name; each worker then ends with it."""
    (tmp_path / "cache" / "models" / "good").mkdir(parents=True)
    context = replace(context, settings=context.settings.model_copy(update={"cache_dir": tmp_path / "cache"}))
    monkeypatch.setitem(KINDS, PARROT.name, replace(PARROT, needs_files=True))
    name = "m" * 500
    body = b'{"model": "%b", "messages": [{"role": "user", "content": "x"}]}' % name.encode()
    paths = {"output_path": str(tmp_path / "o"), "error_path": str(tmp_path / "e")}
    long = take_in(store, [name], body=body, priority=1, **paths).pk
    good = batch_of(store, tmp_path, "good")
    with pytest.raises(EngineUnavailable, match="no folder here"):
        work(context)
    assert (counts(store, long), counts(store, good)) == ((0, 0), (10, 0))


def test_a_blocked_model_that_another_worker_serves_is_no_blocked_batch(
    context: Context, store: Store, tmp_path: Path, broken: dict[str, Blame]
) -> None:
    """A bigger GPU, other flags. Mutant: a block of one worker that counts for all."""
    broken["bad"] = Blame.MODEL
    pk = batch_of(store, tmp_path, "bad")
    with pytest.raises(EngineUnavailable):
        work(context)
    assert pk in batches.blocks(store)
    other = worker(store, identity=processes.current())
    registry.heartbeat(store, worker=other, models=["bad"], note=None)
    assert batches.blocks(store) == {}


def test_a_blocked_model_is_tried_again_when_its_folder_appears(
    context: Context, store: Store, tmp_path: Path, broken: dict[str, Blame], monkeypatch: pytest.MonkeyPatch
) -> None:
    """No command is needed. Mutant: a worker that looks at the folder only at its start."""
    monkeypatch.setattr("vbatch.worker.blocked.LOOK", timedelta(seconds=0.1))
    monkeypatch.setattr(models, "state_of", lambda _context, _model: "bad" in broken)
    context = replace(context, drain=False)
    broken["bad"] = Blame.MODEL
    pk = batch_of(store, tmp_path, "bad")

    async def make_it_appear() -> None:
        while not batches.blocks(store):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        del broken["bad"]
        while counts(store, pk) != (10, 0):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        context.stop.request()

    work(context, make_it_appear())
    assert blocked.known(store) == []


def test_one_engine_answers_at_all_of_its_names(
    context: Context, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model, an alias and an adapter in one load; an adapter that is not there waits, and is tried when it is.

    Mutants: an alias that is loaded as a model of its own; a bad adapter that blocks its model; names of the first
    load that stay.
    """
    monkeypatch.setattr("vbatch.worker.blocked.LOOK", timedelta(seconds=0.1))
    (tmp_path / "styler").mkdir()
    adapters = {"styler": str(tmp_path / "styler"), "late": str(tmp_path / "late")}
    table = ModelSettings(aliases=("gpt-4o",), adapters=adapters)
    settings = context.settings.model_copy(update={"models": {"good": table}})
    context = replace(context, settings=settings, drain=False)
    pks = {name: batch_of(store, tmp_path, name) for name in ("late", "styler", "good", "gpt-4o")}

    async def make_it_appear() -> None:
        while any(counts(store, pks[name]) != (10, 0) for name in ("styler", "good", "gpt-4o")):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        assert context.view.snapshot.engine_loads == 1
        assert set(context.view.snapshot.names) == {"good", "gpt-4o", "styler"}
        (block,) = blocked.known(store)
        assert block.model == "late"
        assert "the adapter late cannot be loaded: no adapter in" in block.reason
        (tmp_path / "late").mkdir()
        (tmp_path / "late" / "adapter_config.json").write_text("{}")
        while counts(store, pks["late"]) != (10, 0):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        context.stop.request()

    work(context, make_it_appear())
    assert context.view.snapshot.engine_loads == 2
    assert blocked.known(store) == []


def test_names_of_a_model_that_cannot_be_loaded_wait_with_it(
    context: Context, store: Store, tmp_path: Path, broken: dict[str, Blame]
) -> None:
    """Mutant: the model's own name alone is blocked; its load is then tried again and again."""
    broken["bad"] = Blame.MODEL
    table = ModelSettings(adapters={"styler": str(tmp_path)})
    context = replace(context, settings=context.settings.model_copy(update={"models": {"bad": table}}))
    pk = batch_of(store, tmp_path, "styler")
    with pytest.raises(EngineUnavailable, match="bad is wrong"):
        work(context)
    assert counts(store, pk) == (0, 0)
    assert {block.model for block in blocked.known(store)} == {"styler"}


def test_a_model_that_is_known_to_be_missing_does_not_unload_the_one_that_is_loaded(
    context: Context, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: dict[str, Blame]
) -> None:
    """A wrong name costs no load. Mutant: the present model unloaded first."""
    assert not broken
    monkeypatch.setitem(KINDS, PARROT.name, replace(PARROT, needs_files=True))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "cache" / "models" / "good").mkdir(parents=True)
    context = replace(context, settings=context.settings.model_copy(update={"cache_dir": tmp_path / "cache"}))
    unloaded: list[str] = []
    unload = models.unload

    async def noted(context: Context, engine: Engine, model: str) -> None:
        unloaded.append(model)
        await unload(context, engine, model)

    monkeypatch.setattr(models, "unload", noted)
    queued = (("good", 3), ("goood", 2), ("good", 1))
    pks = [batch_of(store, tmp_path, model, priority=priority) for model, priority in queued]
    with pytest.raises(EngineUnavailable, match="goood is not on this machine"):
        work(context)
    assert [counts(store, pk) for pk in pks] == [(10, 0), (0, 0), (10, 0)]
    assert unloaded == ["good"], "at the end"


@pytest.mark.parametrize("blame", list(Blame))
def test_a_fault_that_is_not_known_to_be_a_models_fails_no_request(
    context: Context, store: Store, tmp_path: Path, broken: dict[str, Blame], blame: Blame
) -> None:
    """A wrong flag, a driver that is too old: a person must look, and the queue waits.

    Mutant: every fault is the model's; a night's queue then ends as error lines.
    """
    broken |= {"one": blame, "two": blame}
    pks = [batch_of(store, tmp_path, model) for model in ("one", "two")]
    with pytest.raises(VbatchError, match="is wrong") as failure:
        work(context)
    code = ExitCode.MISCONFIGURED if blame is Blame.FLAGS else ExitCode.ENGINE_UNAVAILABLE
    assert failure.value.exit_code is code
    assert [counts(store, pk) for pk in pks] == [(0, 0), (0, 0)]


@pytest.mark.parametrize("blame", list(Blame))
def test_a_failed_load_shows_where_the_engines_log_is(
    context: Context,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    blame: Blame,
) -> None:
    """Mutant: the cause alone, in any event or in the error that ends the worker."""
    path = "/logs/engine-bad.log"

    async def load(load: Load) -> Loaded:
        raise EngineStartFailed("it is wrong", transient=False, blame=blame, log=path)

    monkeypatch.setitem(KINDS, PARROT.name, replace(PARROT, load=load))
    batch_of(context.store, tmp_path, "bad")
    with caplog.at_level(logging.WARNING, logger="vbatch"), pytest.raises(VbatchError, match=path):
        work(context)
    events = [line for record in caplog.records if "cause=" in (line := record.getMessage())]
    assert events[0].startswith("engine.start_failed")
    assert [line for line in events if path not in line] == []


@pytest.mark.parametrize("blame", [Blame.MODEL, Blame.UNKNOWN])
def test_a_model_that_could_be_loaded_before_fails_no_request(
    context: Context, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, blame: Blame
) -> None:
    """A driver after a suspend, memory that a game took: the machine has changed, the model has not.

    Mutant: judging each load by itself; one resume fails the rest of the night as ``model_not_loaded``.
    """
    loads: list[str] = []

    async def load(context: Context, model: str) -> Engine:
        loads.append(model)
        if loads.count(model) > 1:
            raise EngineStartFailed("CUDA unknown error", transient=False, blame=blame)
        return parrot(model)

    monkeypatch.setattr(models, "load", load)
    queued = (("one", 3), ("two", 2), ("one", 1))
    pks = [batch_of(store, tmp_path, model, priority=priority) for model, priority in queued]
    with pytest.raises(VbatchError, match="CUDA unknown error") as failure:
        work(context)
    assert failure.value.exit_code is ExitCode.ENGINE_UNAVAILABLE
    assert loads == ["one", "two", "one"]
    assert [counts(store, pk) for pk in pks] == [(10, 0), (10, 0), (0, 0)]


@pytest.mark.parametrize("asleep", [False, True])
def test_an_engine_that_dies_of_a_suspend_accuses_nobody(
    context: Context, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, asleep: bool
) -> None:
    """The machine sleeps under the first engine. Mutant: a death like any other."""
    slept = timedelta()
    monkeypatch.setattr("vbatch.system.suspend.since_boot", lambda: slept)
    deaths = 0
    died = Serving._crashed

    async def sleep_and_die(serving: Serving, cause: str) -> Ended:
        nonlocal slept, deaths
        slept = timedelta(hours=8) if asleep else slept
        deaths += 1
        return await died(serving, cause)

    monkeypatch.setattr(Serving, "_crashed", sleep_and_die)
    body = (
        b'{"model": "m", "messages": [{"role": "user", "content": "x"}], "metadata": {"vbatch_echo": "exit"}}'
    )
    paths = {"output_path": str(tmp_path / "o.jsonl"), "error_path": str(tmp_path / "e.jsonl")}
    pk = take_in(store, ["m"], body=body, **paths).pk
    work(context)
    assert counts(store, pk) == (0, 1)
    assert deaths == 3 + asleep


def test_what_fails_beside_the_work_is_not_left_for_the_morning(
    context: Context, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who writes the files, or recovers, is gone. Mutant: looking after it only when the queue is empty."""

    async def fail(_loop: WorkLoop) -> None:
        await asyncio.sleep(0.2)
        raise ZeroDivisionError

    async def load(context: Context, model: str) -> Engine:
        return parrot(model, latency=timedelta(seconds=20))

    monkeypatch.setattr(WorkLoop, "_recover_regularly", fail)
    monkeypatch.setattr(models, "load", load)
    pk = batch_of(store, tmp_path, "good")
    with pytest.raises(ZeroDivisionError):
        work(context)
    assert counts(store, pk) == (0, 0)


def test_trouble_over_a_batch_ends_with_it(context: Context, store: Store, tmp_path: Path) -> None:
    """Its folder is gone, and then the batch. Mutant: trouble that a file alone takes back."""
    folder = tmp_path / "gone"
    body = b'{"model": "m", "messages": [{"role": "user", "content": "x"}]}'
    pk = take_in(store, ["m"], body=body, output_path=f"{folder}/o", error_path=f"{folder}/e").pk

    async def give_up() -> None:
        while context.view.snapshot.trouble is None:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await context.in_files(lambda: catalog.delete_batch(store, pk=pk, force=True))

    work(context, give_up())
    assert context.view.snapshot.trouble is None


def test_an_engine_that_the_ledger_does_not_know_is_ended(
    context: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: the failure alone; the engine then holds the GPU for nobody."""
    closed: list[str] = []

    async def load(load: Load) -> Loaded:
        engine = await PARROT.load(load)
        monkeypatch.setattr(engine, "close", close)
        return engine

    async def close() -> None:
        closed.append("closed")

    def refuse(*_args: object) -> None:
        raise StoreMisconfigured

    monkeypatch.setitem(KINDS, PARROT.name, replace(PARROT, load=load))
    monkeypatch.setattr(models, "_record", refuse)
    with pytest.raises(StoreMisconfigured):
        asyncio.run(models.load(context, "m"))
    assert closed == ["closed"]


def test_a_model_hub_that_is_away_fails_no_request(
    context: Context, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other models are served meanwhile. Mutant: it is the model's fault, for another one loads."""

    async def load(context: Context, model: str) -> Engine:
        if model == "far":
            raise EngineStartFailed("the hub is away", transient=True)
        return parrot(model)

    monkeypatch.setattr(models, "load", load)
    far, near = batch_of(store, tmp_path, "far"), batch_of(store, tmp_path, "near")
    with pytest.raises(VbatchError, match="the hub is away"):
        work(context)
    assert [counts(store, pk) for pk in (far, near)] == [(0, 0), (10, 0)]


def test_a_chunk_that_nobody_holds_goes_back_to_the_queue(
    context: Context, store: Store, tmp_path: Path
) -> None:
    """The store has it for ours, and we know nothing of it. Mutant: a worker at rest that does not ask for such."""
    pk = batch_of(store, tmp_path, "good")
    claim(store, context.worker, model="good")
    work(context)
    assert counts(store, pk) == (10, 0)
    assert rows(store, "SELECT state FROM chunk") == [("done",)]


def test_a_drain_waits_for_what_another_worker_runs(context: Context, store: Store, tmp_path: Path) -> None:
    """And not for what its engine does not serve. Mutant: a drain that looks at what is ready alone."""
    other = replace(context, settings=settings_in(tmp_path))
    pk, left = batch_of(store, tmp_path, "echo"), batch_of(store, tmp_path, "qwen-8b")
    elsewhere = worker(store)
    (lease,) = claim(store, elsewhere, model="echo")

    async def answer() -> None:
        while not other.view.snapshot.left_alone:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        await other.in_files(queue.flush, store, worker=elsewhere, results=answers_to(lease))

    work(other, answer())
    assert catalog.by_pk(store, pk=pk).status is BatchStatus.COMPLETED
    assert counts(store, left) == (0, 0)


def test_what_goes_on_beside_the_work_is_no_sign_of_life(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: a watchdog that any task may reset; a worker whose engine hangs as it is loaded then lives for ever."""
    later = time.monotonic() + 100

    async def beside(watchdog: Watchdog) -> None:
        watchdog.waiting()

    async def scene() -> None:
        watchdog = Watchdog()
        watchdog.attach()
        monkeypatch.setattr("vbatch.worker.heartbeat.time.monotonic", lambda: later)
        await asyncio.create_task(beside(watchdog))
        assert not watchdog.alive
        watchdog.waiting()
        assert watchdog.alive

    asyncio.run(scene())
