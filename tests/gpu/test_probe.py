"""The probe: the real pynvml against a stand-in driver that is whole, broken, wedged or gone.

That it is a child is what the tests of the wedged and of the crashing driver fail without.
"""

from __future__ import annotations

import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest

from tests.rigs import engines
from tests.rigs.nvml import GIB, TOTAL, StandInDriver
from tests.rigs.waiting import until
from vbatch import gpu
from vbatch.gpu import xid_errors
from vbatch.system import descendants, processes


def test_the_incidents_gpu(driver: StandInDriver) -> None:
    with engines.child() as holder:
        driver.has((holder.pid, round(14.37 * GIB)))
        (card,) = gpu.probe().gpus
        assert f"{card.free / GIB:.1f} of {card.total / GIB:.2f}" == "1.2 of 15.57"
        assert [listed.pid for listed in card.holders] == [holder.pid]
    assert gpu.probe().gpus[0].free == TOTAL  # it is gone, and its memory is back


@pytest.mark.parametrize(
    ("fact", "code"),
    [
        ("err 4", "no_permission"),
        ("err 9", "driver_not_loaded"),
        ("err 12", "library_missing"),
        ("err 15", "lost"),
        ("err 16", "reset_required"),
        ("err 18", "mismatch"),
        ("err 999", "other"),
        ("segfault", "crashed"),
    ],
)
def test_a_driver_that_refuses(driver: StandInDriver, fact: str, code: str) -> None:
    driver.says(fact)
    trouble = gpu.probe().trouble
    assert trouble is not None
    assert trouble.code == code


def test_a_wedged_driver_costs_the_limit_and_no_more(driver: StandInDriver) -> None:
    """Mutant: no time limit on the child."""
    driver.says("hang 3600")
    trouble = gpu.probe(timedelta(seconds=1)).trouble
    assert trouble is not None
    assert trouble.code == "hanging"


def test_one_gpu_lost_is_not_all_lost(driver: StandInDriver) -> None:
    """Mutant: no guard around a single GPU."""
    driver.says("gpu", "gpu_err 15", "gpu", "name Second")
    report = gpu.probe()
    assert [(index, trouble.code) for index, trouble in report.lost] == [(0, "lost")]
    assert [(card.index, card.name) for card in report.gpus] == [(1, "Second")]


def test_what_is_not_told_is_none(driver: StandInDriver) -> None:
    with engines.child() as holder:
        driver.says("gpu", "memory 3", f"proc {holder.pid} NA")
        (card,) = gpu.probe().gpus
    assert not card.memory_known
    assert card.holders[0].used is None


@pytest.mark.parametrize("fact", ["mig 1", "memory 4"])
def test_a_card_that_is_split_tells_no_memory(driver: StandInDriver, fact: str) -> None:
    """It says "no permission", or the whole card's figures. Mutant: a GPU that this user may not use, or a full one."""
    driver.says("gpu", f"leak {15 * GIB}", fact)
    report = gpu.probe()
    assert not report.lost
    assert [card.memory_known for card in report.gpus] == [False]


def test_who_computes_and_draws_counts_once(driver: StandInDriver) -> None:
    with engines.child() as desktop:
        driver.says("gpu", f"proc {desktop.pid} {GIB}", f"draws {desktop.pid} {GIB}")
        (card,) = gpu.probe().gpus
    assert [(listed.pid, listed.kind) for listed in card.holders] == [(desktop.pid, "compute")]


def test_memory_that_comes_back_slowly_is_waited_for(driver: StandInDriver) -> None:
    """Mutant: returning the first reading."""
    readings = iter([14 * GIB, 9 * GIB, GIB, GIB])

    def look() -> gpu.GpuReport:
        driver.has(leak=next(readings))
        return gpu.probe()

    settled = gpu.wait_until_settled(0, limit=timedelta(seconds=30), look=look)
    assert settled is not None
    assert settled.free == TOTAL - GIB


def test_a_gpu_that_vanishes_is_not_waited_for(driver: StandInDriver) -> None:
    assert gpu.wait_until_settled(0, limit=timedelta(seconds=30)) is None


def test_errors_in_the_kernel_log() -> None:
    log = (
        "3,1,2,-;NVRM: Xid (PCI:0000:01:00): 79, pid='<unknown>', name=<unknown>, GPU has fallen off the bus.\n"
        "3,1,2,-;NVRM: Xid (PCI:0000:01:00): 45, pid=1, Ch 00000008\n"
        "3,1,2,-;NVRM: Xid (PCI:0000:01:00): 777, something new\n"
    )
    found = xid_errors(log) or []
    assert [error.code for error in found] == [79, 777]  # 45 is what a killed program leaves
    assert "fallen off the bus" in found[0].meaning
    assert "catalogue" in found[1].meaning


def test_a_kernel_log_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Then the journal is asked. Mutant: "no memory errors", of what nobody read."""
    monkeypatch.setattr("vbatch.system.kernel_log.RING_BUFFER", str(tmp_path / "forbidden"))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert xid_errors() is None
    journal = tmp_path / "journalctl"
    journal.write_text("#!/bin/sh\necho 'NVRM: Xid (PCI:0000:01:00): 79, GPU has fallen off the bus.'\n")
    journal.chmod(0o755)
    assert [error.code for error in xid_errors() or []] == [79]


def test_a_gpu_is_followed(driver: StandInDriver) -> None:
    seen: list[gpu.Gpu] = []
    driver.has(leak=GIB)
    with gpu.watched([0], seen.extend):
        until(lambda: any(card.used == GIB for card in seen))
        driver.has(leak=3 * GIB)
        until(lambda: any(card.used == 3 * GIB for card in seen))


def test_each_gpu_of_an_engine_is_followed(driver: StandInDriver) -> None:
    """Mutants: the first one alone; every GPU of the machine."""
    seen: list[list[int]] = []
    driver.says("gpu", "gpu", "gpu", "gpu")
    with gpu.watched([1, 2], lambda cards: seen.append([card.index for card in cards])):
        until(lambda: seen)
    assert seen[0] == [1, 2]


def test_who_follows_a_gpu_ends_with_its_parent(driver: StandInDriver) -> None:
    """Mutant: a child that does not look at its stdin; it would outlive a worker that was killed."""
    script = (
        "import os, signal, subprocess, time\n"
        "from vbatch import gpu\n"
        "with gpu.watched([0], lambda cards: print(os.getpid(), flush=True)):\n"
        "    time.sleep(60)\n"
    )
    driver.has()
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        parent.stdout.readline()
        (child,) = descendants.children(parent.pid)
        parent.kill()
    until(lambda: processes.identify(child) is None)
