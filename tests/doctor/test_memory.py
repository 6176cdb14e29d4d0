"""Who holds GPU memory, whether what is free is enough, and what is proposed: with the stand-in driver's figures."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.doctor.test_driver import CHECKS, empty_home, found, gpu_build  # noqa: F401  (two fixtures)
from tests.rigs import engines
from tests.rigs.nvml import GIB, TOTAL, StandInDriver
from vbatch import config, gpu
from vbatch.doctor.checks import gpu_memory
from vbatch.doctor.diagnosis import Diagnosis
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Level
from vbatch.doctor.running import Conduct, examine
from vbatch.gpu_memory import check as memory_check
from vbatch.gpu_memory import locks as gpu_locks
from vbatch.gpu_memory.cards import Card
from vbatch.gpu_memory.cards import of_workers as cards_of_workers
from vbatch.gpu_memory.holders import Holder, Kind
from vbatch.store import Store, registry
from vbatch.system.ending import Ended


def test_memory_that_is_not_told_is_left_to_vllm(driver: StandInDriver) -> None:
    driver.says("gpu", "memory 3")
    assert found()["gpu.memory"].level is Level.SKIP


def test_memory_that_no_process_holds(driver: StandInDriver) -> None:
    driver.has(leak=14 * GIB)
    findings = found()
    assert "14.0 GiB of GPU 0" in findings["gpu.ghost"].what
    assert findings["gpu.memory"].level is Level.FAIL
    assert findings["gpu.memory"].passing  # it may be settling


def test_a_hidden_holder_is_named_as_that(driver: StandInDriver) -> None:
    """A pid that NVML lists and that is nobody here: another container's. The stand-in lists living pids only."""
    report = gpu.GpuReport(
        gpus=(
            gpu.Gpu(
                index=0, uuid="u", name="n", total=TOTAL, used=TOTAL, memory_known=True,
                holders=(gpu.Holder(pid=4_000_000, used=TOTAL, kind="compute"),),
            ),
        )
    )  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu, "probe", lambda: report)
        assert "cannot be seen" in found()["gpu.hidden"].what


def test_a_desktop_is_named_and_left_alone(driver: StandInDriver) -> None:
    with engines.child() as desktop:
        driver.says("gpu", f"total {TOTAL}", f"draws {desktop.pid} {GIB}", f"proc {desktop.pid} {GIB}")
        holder = found()["gpu.process"]
        assert f"1.0 GiB of GPU 0: sleep 600 (pid {desktop.pid}" in holder.what
        assert holder.level is Level.INFO
        assert holder.repair is None


def test_a_defunct_holder_leads_to_its_parent(driver: StandInDriver) -> None:
    """The stand-in lists living processes only, so the report is made by hand for a real zombie."""
    parent = subprocess.Popen(
        [sys.executable, "-c", "import os,time\nif os.fork()==0: os._exit(0)\ntime.sleep(60)"]
    )
    try:
        time.sleep(0.5)
        (zombie,) = map(int, Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split())
        report = gpu.GpuReport(
            gpus=(
                gpu.Gpu(
                    index=0, uuid="u", name="n", total=TOTAL, used=TOTAL, memory_known=True,
                    holders=(gpu.Holder(pid=zombie, used=TOTAL, kind="compute"),),
                ),
            )
        )  # fmt: skip
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gpu, "probe", lambda: report)
            assert str(parent.pid) in found()["gpu.defunct"].commands[0]
    finally:
        parent.kill()
        parent.wait()


@pytest.mark.parametrize("engine", ["echo", "cpu"])
def test_no_gpu_memory_is_needed_where_nothing_computes_on_it(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch, engine: str
) -> None:
    """As ``memory_check.require``. Mutant: no look at ``needs_gpu``."""
    driver.has(leak=14 * GIB)
    monkeypatch.setenv("VBATCH_ENGINE", "echo" if engine == "echo" else "vllm")
    monkeypatch.setattr("vbatch.engine.installed.computes_on_gpu", lambda: engine == "echo")
    assert found()["gpu.memory"].level is Level.INFO
    demanded = examine(CHECKS, Facts(settings=config.load(), min_free_gb=12), Conduct()).findings
    assert [one.level for one in demanded if one.id == "gpu.memory"] == [Level.FAIL]


def test_memory_that_settles_is_waited_for_beside_a_desktop(driver: StandInDriver) -> None:
    """Mutants: ``passing`` only where no process is listed; ``passing`` though the ghost would not be enough."""
    with engines.child() as desktop:
        driver.has((desktop.pid, GIB), leak=13 * GIB)
        assert found()["gpu.memory"].passing
        driver.has((desktop.pid, 11 * GIB), leak=3 * GIB)
        assert not found()["gpu.memory"].passing


@pytest.mark.parametrize("who", ["the worker", "one that is gone", "another one"])
def test_a_worker_that_the_driver_does_not_list(
    driver: StandInDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, who: str
) -> None:
    """In Docker and on WSL it lists nobody. Mutants: FAIL beside one at work; no look whether it lives, or has it."""
    monkeypatch.setenv("VBATCH_DATABASE_URL", f"sqlite:///{tmp_path / 'vbatch.db'}")
    settings = config.load()
    store = Store(settings.store_url)
    store.prepare()
    driver.has(leak=14 * GIB)
    with engines.child() as worker, engines.child() as other:
        identity = engines.dead_identity() if who == "one that is gone" else worker.identity
        registry.register(store, identity=identity, engine="vllm")
        settings.state_dir.mkdir(parents=True)
        holds = other.pid if who == "another one" else identity.pid
        gpu_locks._lock_of(settings.state_dir, Card(0)).write_text(str(holds))
        findings = found()
    at_work = who == "the worker"
    assert findings["gpu.memory"].level is (Level.INFO if at_work else Level.FAIL)
    assert ("gpu.ghost" in findings) is not at_work


def test_a_gpu_that_is_named_by_its_uuid(driver: StandInDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: taking what is no number for GPU 0."""
    driver.says("gpu", f"leak {14 * GIB}", "gpu")
    cards = gpu.probe().gpus
    assert cards[0].uuid != cards[1].uuid
    for card in cards:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", card.uuid)
        assert cards_of_workers(config.load(), gpu.probe()) == (card.index,)
        levels = [one.level for one in examine(CHECKS, Facts(settings=config.load()), Conduct()).findings]
        assert (Level.FAIL in levels) == (card.index == 0)


@pytest.mark.parametrize(
    ("used", "proposed"),
    [([11, 1], [0]), ([6, 6], [0, 1]), ([1], []), ([None], [0])],
)
def test_only_who_is_in_the_way_is_proposed(used: list[int | None], proposed: list[int]) -> None:
    """Mutant: the first command of each holder: a person would be told to end what frees nothing of use."""
    held = [
        Holder(
            pid=number, used=None if size is None else size * GIB, kind=Kind.PROCESS,
            who="x", remedies=(f"kill {number}",),
        )
        for number, size in enumerate(used)
    ]  # fmt: skip
    card = gpu.Gpu(
        index=0, uuid="u", name="n", total=16 * GIB, free=2 * GIB, used=14 * GIB, memory_known=True
    )
    check = memory_check.MemoryCheck(gpu=card, needed=12 * GIB, reason="r", holders=tuple(held), unlisted=0)
    expected = tuple(f"kill {number}" for number in proposed)
    assert check.remedies == (expected or ("nvidia-smi",))


@pytest.mark.parametrize(
    ("outcome", "command"), [(Ended.UNKILLABLE, "sudo reboot"), (Ended.REFUSED, "sudo kill")]
)
def test_a_repair_that_fails_proposes_something_else(
    driver: StandInDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outcome: Ended, command: str
) -> None:
    """Mutant: keeping the finding's commands; the next command would be the repair that has just failed."""
    monkeypatch.setenv("VBATCH_DATABASE_URL", f"sqlite:///{tmp_path / 'vbatch.db'}")
    store = Store(config.load().store_url)
    store.prepare()
    monkeypatch.setattr(
        "vbatch.recovery.orphans.end", lambda _store, found, _state_dir: {found[0].identity.pid: outcome}
    )
    with engines.orphan() as engine:
        engines.in_ledger(
            store, engine.identity, worker=engines.dead_identity(), state_dir=config.load().state_dir
        )
        driver.has((engine.pid, 14 * GIB))
        conduct = Conduct(may_repair=lambda _finding: True)
        findings = examine(CHECKS, Facts(settings=config.load()), conduct).findings
    diagnosis = Diagnosis.of(findings, story=None)
    assert (diagnosis.next_command or "").startswith(command)


def test_freed_is_what_was_measured(
    driver: StandInDriver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half of it is still taken by somebody else by then. Mutant: ``_used`` in the place of ``_freed``."""
    monkeypatch.setenv("VBATCH_DATABASE_URL", f"sqlite:///{tmp_path / 'vbatch.db'}")
    store = Store(config.load().store_url)
    store.prepare()
    facts = Facts(settings=config.load())
    with engines.orphan() as engine:
        entry = engines.in_ledger(
            store, engine.identity, worker=engines.dead_identity(), state_dir=config.load().state_dir
        )
        driver.has((engine.pid, 14 * GIB))
        assert facts.gpu.gpus[0].used == 14 * GIB
        driver.has(leak=8 * GIB)
        assert gpu_memory._end(facts, [entry]) == "ended, 6.0 GiB of GPU memory came back"
