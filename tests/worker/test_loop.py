"""What the worker does next: models that cannot be loaded, chunks that no worker holds. A real store, an echo."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Coroutine, Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.rigs.filling import answers_to, claim, rows, take_in, worker
from tests.rigs.parrot import PARROT, parrot
from tests.rigs.waiting import SILENCE
from tests.rigs.workers import settings_in
from vbatch.engine import Blame, Engine, EngineStartFailed
from vbatch.engine.kinds import KINDS, Load
from vbatch.errors import ExitCode, StoreMisconfigured, VbatchError
from vbatch.protocol import BatchStatus
from vbatch.store import WORKER_PATIENCE, Store, catalog, queue, registry
from vbatch.system import processes
from vbatch.worker import Stop, View, models
from vbatch.worker.context import Context
from vbatch.worker.heartbeat import Watchdog
from vbatch.worker.loop import WorkLoop
from vbatch.worker.serving import Ended, Serving


@pytest.fixture
def context(store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Context]:
    """A worker's surroundings, its settings those of a drain on an engine that echoes for any model."""
    monkeypatch.setitem(KINDS, PARROT.name, PARROT)
    me = registry.register(store, identity=processes.current(), engine=PARROT.name)
    context = Context(
        store=Store(store.url.render_as_string(hide_password=False), patience=WORKER_PATIENCE),
        settings=settings_in(tmp_path, engine=PARROT.name),
        drain=True,
        worker=me,
        view=View(),
        stop=Stop(),
        watchdog=Watchdog(),
    )
    yield context
    context.close()
    context.store.close()


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
def test_a_model_that_cannot_be_loaded_fails_alone(
    context: Context, store: Store, tmp_path: Path, broken: dict[str, Blame], blame: Blame
) -> None:
    """Where nobody can tell whose fault it is, it is the model's as soon as another one loads.

    Mutants: a worker that gives up over it, so that the queue behind it waits for ever; one that does not try others.
    """
    broken["bad"] = blame
    bad, good = batch_of(store, tmp_path, "bad"), batch_of(store, tmp_path, "good")
    work(context)
    assert counts(store, bad) == (0, 10)
    assert counts(store, good) == (10, 0)
    assert (tmp_path / "bad-0.errors.jsonl").read_text().count("model_not_loaded") == 10


def test_a_fault_after_another_model_was_loaded_is_the_models(
    context: Context, store: Store, tmp_path: Path, broken: dict[str, Blame]
) -> None:
    broken["bad"] = Blame.UNKNOWN
    good, bad = batch_of(store, tmp_path, "good"), batch_of(store, tmp_path, "bad")
    work(context)
    assert (counts(store, good), counts(store, bad)) == ((10, 0), (0, 10))


def test_a_model_that_is_left_to_others_holds_nothing_up(
    context: Context, store: Store, tmp_path: Path, broken: dict[str, Blame]
) -> None:
    """Another worker has it loaded, and its batch goes first.

    Mutant: an engine that is not given work because the best that waits is for a model that is not loaded here.
    """
    broken["bad"] = Blame.MODEL
    body = b'{"model": "bad", "messages": [{"role": "user", "content": "hello"}]}'
    elsewhere = take_in(store, ["bad"] * 600, body=body, priority=1).pk
    claim(store, worker(store), model="bad")
    good = batch_of(store, tmp_path, "good")

    async def until_answered() -> None:
        while counts(store, good) != (10, 0):  # noqa: ASYNC110
            await asyncio.sleep(0.1)
        context.stop.request()

    work(context, until_answered())
    assert counts(store, elsewhere) == (0, 0), "nothing of it is failed here"


@pytest.mark.parametrize("blame", [Blame.MACHINE, Blame.UNKNOWN, Blame.FLAGS])
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

    async def load(load: Load) -> Engine:
        raise EngineStartFailed("it is wrong", transient=False, blame=blame, log=path)

    monkeypatch.setitem(KINDS, PARROT.name, replace(PARROT, load=load))
    batch_of(context.store, tmp_path, "bad")
    ended = nullcontext() if blame is Blame.MODEL else pytest.raises(VbatchError, match=path)
    with caplog.at_level(logging.WARNING, logger="vbatch"), ended:
        work(context)
    events = [line for record in caplog.records if "cause=" in (line := record.getMessage())]
    assert events[0].startswith("engine.start_failed")
    assert [line for line in events if path not in line] == []
    if blame is Blame.MODEL:
        assert path in (context.view.snapshot.trouble or "")


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

    async def load(load: Load) -> Engine:
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
