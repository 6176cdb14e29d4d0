"""What the driver may say or do, through the real pynvml in its child: a finding each, in bounded time.

Mutant of all: asking NVML in doctor's own process; the hanging and the crashing driver take doctor with them.
"""

from __future__ import annotations

from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from tests.rigs.nvml import StandInDriver
from vbatch import config, gpu
from vbatch.doctor.checks import driver as driver_checks
from vbatch.doctor.checks import gpu_memory
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level
from vbatch.doctor.running import Conduct, examine
from vbatch.engine import EngineStartFailed
from vbatch.gpu_memory import check as memory_check
from vbatch.store import Store

CHECKS = (*driver_checks.CHECKS, *gpu_memory.CHECKS)


@pytest.fixture(autouse=True)
def gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a build that computes on a GPU needs its memory."""
    monkeypatch.setattr("vbatch.engine.installed.computes_on_gpu", lambda: True)


@pytest.fixture(autouse=True)
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DATA", "STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))


def found() -> dict[str, Finding]:
    findings = examine(CHECKS, Facts(settings=config.load()), Conduct()).findings
    return {finding.id: finding for finding in reversed(findings)}


@pytest.mark.parametrize(
    ("fact", "finding", "words"),
    [
        ("err 9", "gpu.not_loaded", "is not loaded"),
        ("err 18", "gpu.mismatch", "different versions"),
        ("err 15", "gpu.lost", "is lost"),
        ("err 16", "gpu.reset", "must be reset"),
        ("err 4", "gpu.permission", "may not use"),
        ("err 999", "gpu.crashed", "driver reports"),
        ("segfault", "gpu.crashed", "SIGSEGV"),
    ],
)
def test_a_driver_that_cannot_be_used(driver: StandInDriver, fact: str, finding: str, words: str) -> None:
    driver.says(fact)
    findings = found()
    assert findings[finding].level is Level.FAIL
    assert words in findings[finding].what
    assert findings[finding].commands
    assert findings["gpu.memory"].what == "skipped: needs the driver"


def test_a_wedged_driver_costs_bounded_time(driver: StandInDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.says("hang 3600")
    monkeypatch.setattr(gpu, "probe", partial(gpu.probe, timedelta(seconds=1)))
    assert found()["gpu.hanging"].level is Level.FAIL


def test_a_missing_library_is_no_fault_without_a_gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round it is one. Mutant: not asking which vLLM is installed."""
    missing = gpu.GpuReport(trouble=gpu.Trouble(code="library_missing", message="no library"))
    monkeypatch.setattr(gpu, "probe", lambda: missing)
    monkeypatch.setattr("vbatch.engine.installed.computes_on_gpu", lambda: False)
    assert found()["gpu.none"].level is Level.SKIP
    monkeypatch.setattr("vbatch.engine.installed.computes_on_gpu", lambda: True)
    assert found()["gpu.library"].level is Level.FAIL


def test_one_of_two_gpus_is_lost(driver: StandInDriver) -> None:
    driver.says("gpu", "gpu_err 15", "gpu")
    findings = found()
    assert "GPU 0" in findings["gpu.lost"].what
    assert "GPU 1" in findings["gpu.driver"].what


def test_a_healthy_gpu_is_well(driver: StandInDriver) -> None:
    driver.has()
    findings = found()
    assert {finding.level for finding in findings.values()} <= {Level.OK, Level.INFO}
    assert "RTX 4080" in findings["gpu.driver"].what


@pytest.mark.parametrize(
    ("fact", "finding", "level", "words"),
    [
        ("mode 2", "gpu.compute_mode", Level.FAIL, "prohibited"),
        ("mode 3", "gpu.compute_mode", Level.WARN, "exclusive_process"),
        ("throttle 64", "gpu.throttled", Level.WARN, "heat"),
        ("throttle 4", "gpu.throttled", Level.INFO, "at its power limit"),  # as under full load
        ("throttle 8", "gpu.health", Level.OK, "no throttling"),  # as at a change of clocks
        ("throttle 132", "gpu.throttled", Level.WARN, "power limit, power brake"),
        ("throttle 1", "gpu.health", Level.OK, "no throttling"),  # idle is no throttling
        ("ecc 3", "gpu.ecc", Level.WARN, "3 memory errors"),
        ("remap 1", "gpu.ecc", Level.WARN, "waits for a reset"),
        ("persistence 0", "gpu.persistence", Level.INFO, "persistence mode is off"),
    ],
)
def test_a_gpu_that_is_not_at_its_best(
    driver: StandInDriver, fact: str, finding: str, level: Level, words: str
) -> None:
    driver.says("gpu", fact)
    findings = examine(CHECKS, Facts(settings=config.load()), Conduct()).findings
    assert any(one.id == finding and one.level is level and words in one.what for one in findings)


def test_a_file_of_flags_is_vllms_to_read(driver: StandInDriver) -> None:
    """It may ask for less. Mutant: refusing by the default share, for ever."""
    driver.has(leak=10 << 30)
    store = Store("sqlite:////nowhere")
    memory_check.require(store, state_dir=Path(), gpu=None, args=("--config", "flags.yaml"))
    with pytest.raises(EngineStartFailed, match="would be needed"):
        memory_check.require(store, state_dir=Path(), gpu=None, args=())


def test_a_driver_that_knows_no_gpu(driver: StandInDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: calling it well; the worker ends with "there is no GPU 0" and sends one to doctor, who says so too."""
    finding = found()["gpu.not_found"]
    assert (finding.level, finding.passing) == (Level.FAIL, True)
    with pytest.raises(EngineStartFailed) as refused:
        memory_check.require(Store("sqlite:////nowhere"), state_dir=Path(), gpu=None, args=())
    assert refused.value.transient
    monkeypatch.setattr("vbatch.engine.installed.computes_on_gpu", lambda: False)
    assert found()["gpu.none"].level is Level.SKIP
