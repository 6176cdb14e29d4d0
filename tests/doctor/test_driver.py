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
from vbatch.engine import EngineStartFailed, installed
from vbatch.gpu_memory import check as memory_check
from vbatch.store import Store
from vbatch.system import wsl

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
    memory_check.require(store, state_dir=Path(), numbers=[0], args=("--config", "flags.yaml"))
    with pytest.raises(EngineStartFailed, match="would be needed"):
        memory_check.require(store, state_dir=Path(), numbers=[0], args=())


def test_a_driver_that_knows_no_gpu(driver: StandInDriver, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: calling it well; the worker ends with "there is no GPU 0" and sends one to doctor, who says so too."""
    finding = found()["gpu.not_found"]
    assert (finding.level, finding.passing) == (Level.FAIL, True)
    with pytest.raises(EngineStartFailed) as refused:
        memory_check.require(Store("sqlite:////nowhere"), state_dir=Path(), numbers=[0], args=())
    assert refused.value.transient
    monkeypatch.setattr("vbatch.engine.installed.computes_on_gpu", lambda: False)
    assert found()["gpu.none"].level is Level.SKIP


@pytest.mark.parametrize("version", ["0.33.0+rocm700", "0.32.1+g0123.rocm700", "0.33.0+xpu"])
def test_a_gpu_without_nvml_is_not_missed(monkeypatch: pytest.MonkeyPatch, version: str) -> None:
    """Neither the worker nor doctor asks for NVIDIA's driver. Mutant: every vLLM but the CPU's taken for NVIDIA's."""
    monkeypatch.setattr(gpu, "probe", lambda: pytest.fail("NVML was asked"))
    monkeypatch.setattr("vbatch.engine.installed._build", lambda: version.partition("+")[2])
    findings = found()
    assert findings["gpu.unmanaged"].level is Level.INFO
    assert "the memory of the GPU is unknown" in findings["gpu.unmanaged"].what
    assert Level.FAIL not in {finding.level for finding in findings.values()}
    memory_check.require(Store("sqlite:////nowhere"), state_dir=Path(), numbers=[0], args=())
    assert Facts(settings=config.load()).gpu.gpus == ()


def test_a_jetson_is_one_of_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("vbatch.engine.installed._build", lambda: "")
    assert installed.has_nvml()
    (tmp_path / "nv_tegra_release").write_text("# R36 (release), REVISION: 4.0\n")
    monkeypatch.setattr(installed, "JETSON", tmp_path / "nv_tegra_release")
    assert not installed.has_nvml()
    assert installed.without_nvml() == "NVIDIA Jetson"
    assert "ubuntu-drivers" not in str(driver_checks.update_commands())


def test_who_installs_the_driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Mutant: ubuntu-drivers wherever the library is missing: inside WSL2 it breaks what works."""
    missing = gpu.GpuReport(trouble=gpu.Trouble(code="library_missing", message="no library"))
    monkeypatch.setattr(gpu, "probe", lambda: missing)
    monkeypatch.setattr(driver_checks, "PCI", tmp_path)
    for vendor, command in (("0x1002", "lspci"), ("0x10de", "sudo ubuntu-drivers install")):
        (tmp_path / vendor).mkdir()
        (tmp_path / vendor / "vendor").write_text(f"{vendor}\n")
        assert found()["gpu.library"].commands[1].startswith(command)
    (tmp_path / "version").write_text("Linux version 6.6.87.2-microsoft-standard-WSL2 (root@x) #1 SMP\n")
    monkeypatch.setattr(wsl, "KERNEL", tmp_path / "version")
    assert found()["gpu.library"].commands == ("nvidia-smi", *driver_checks.update_commands())
    assert "Windows" in driver_checks.update_commands()[0]


def test_wsl_is_known_by_its_kernel_or_its_device(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Mutants: the kernel's name alone; the device alone, which a container on WSL2 may lack."""
    monkeypatch.setattr(wsl, "KERNEL", tmp_path / "version")
    monkeypatch.setattr(wsl, "DEVICE", tmp_path / "dxg")
    assert not wsl.is_wsl()
    (tmp_path / "version").write_text("Linux version 6.6.87.2-microsoft-standard-WSL2\n")
    assert wsl.is_wsl()
    (tmp_path / "version").write_text("Linux version 6.12.0-mine\n")
    assert not wsl.is_wsl()
    (tmp_path / "dxg").touch()
    assert wsl.is_wsl()


def test_memory_of_no_listed_process_is_no_alarm_on_wsl(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver of Windows lists none, so each run would warn. Mutant: no look at where it runs."""
    driver.has(leak=3 << 30, total=80 << 30)
    assert found()["gpu.ghost"].level is Level.WARN
    monkeypatch.setattr(wsl, "is_wsl", lambda: True)
    assert found()["gpu.ghost"].level is Level.SKIP


def test_waiting_for_memory_on_wsl_ends_when_it_has_settled(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Windows' own programs hold it for good, and none is listed. Mutant: waiting as long as one may."""
    driver.has(leak=14 << 30)
    monkeypatch.setattr("vbatch.doctor.facts.SETTLES", timedelta(seconds=1))
    monkeypatch.setattr("vbatch.doctor.running.POLL", timedelta(seconds=0.2))
    waited: list[float] = []

    def conduct(patience: float) -> Conduct:
        return Conduct(
            patience=timedelta(seconds=patience), waiting=lambda _, seconds: waited.append(seconds)
        )

    examine(gpu_memory.CHECKS, Facts(settings=config.load()), conduct(4))
    assert waited[-1] > 2
    waited.clear()
    monkeypatch.setattr(wsl, "is_wsl", lambda: True)
    found = examine(gpu_memory.CHECKS, Facts(settings=config.load()), conduct(600)).findings
    assert [finding.passing for finding in found if finding.level is Level.FAIL] == [False]
    assert 0 < waited[-1] < 60
