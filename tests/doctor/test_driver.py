"""What the driver may say or do, through the real pynvml in its child: a finding each, in bounded time.

Mutant of all: asking NVML in doctor's own process; the hanging and the crashing driver take doctor with them.
"""

from __future__ import annotations

import subprocess
import sys
import time
from datetime import timedelta
from functools import partial
from pathlib import Path

import pytest

from tests.rigs import engines
from tests.rigs.nvml import GIB, TOTAL, StandInDriver
from vbatch import config, gpu
from vbatch.doctor import driver as driver_checks
from vbatch.doctor import memory
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level
from vbatch.doctor.running import Conduct, examine

CHECKS = (*driver_checks.CHECKS, *memory.CHECKS)


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
        ("err 999", "gpu.crashed", "driver says"),
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
    driver.says("hang 60")
    monkeypatch.setattr(gpu, "probe", partial(gpu.probe, timedelta(seconds=1)))
    started = time.monotonic()
    assert found()["gpu.hanging"].level is Level.FAIL
    assert time.monotonic() - started < 15


def test_a_missing_library_is_no_fault_without_a_gpu_build(monkeypatch: pytest.MonkeyPatch) -> None:
    """The other way round it is one. Mutant: not asking which vLLM is installed."""
    missing = gpu.GpuReport(trouble=gpu.Trouble(code="library_missing", message="no library"))
    monkeypatch.setattr(gpu, "probe", lambda: missing)
    monkeypatch.setattr("vbatch.engine.build.computes_on_gpu", lambda: False)
    assert found()["gpu.none"].level is Level.SKIP
    monkeypatch.setattr("vbatch.engine.build.computes_on_gpu", lambda: True)
    assert found()["gpu.library"].level is Level.FAIL


def test_one_of_two_gpus_is_lost(driver: StandInDriver) -> None:
    driver.says("gpu", "gpu_err 15", "gpu")
    findings = found()
    assert "GPU 0" in findings["gpu.lost"].what
    assert "GPU 1" in findings["gpu.driver"].what


def test_memory_that_is_not_told_is_left_to_vllm(driver: StandInDriver) -> None:
    driver.says("gpu", "memory NA")
    assert found()["gpu.memory"].level is Level.SKIP


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
        ("throttle 4", "gpu.throttled", Level.WARN, "power limit"),
        ("throttle 1", "gpu.driver", Level.OK, "no throttling"),  # idle is no throttling
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
