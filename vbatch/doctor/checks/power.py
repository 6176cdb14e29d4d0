"""Checks of how the machine was shut down, and whether it may go to sleep over a batch."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vbatch.doctor import story
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Check, Entry, Finding
from vbatch.errors import VbatchError
from vbatch.system import suspend
from vbatch.system.systemd import BOOTED, Systemd
from vbatch.system.units import Scope
from vbatch.text import duration

SHUTDOWN = Entry(
    id="host.shutdown",
    means="workers of the last boot were cut off; saved results are all there, and a worker continues from them",
)
SLEEP = Entry(
    id="host.sleep",
    means="a desktop suspends the machine when no person uses it, however busy the GPU is; no batch continues "
    "meanwhile, and the GPU's driver may not work afterwards",
    commands=("sudo systemctl mask suspend.target sleep.target hibernate.target   # unmask undoes it",),
)

POWER = Path("/sys/power/state")  # what the kernel can do: "freeze mem disk"


def _shutdown(facts: Facts) -> Iterator[Finding]:
    """Report how the last boot ended."""
    found = story.of(facts)
    if found is None:
        yield SHUTDOWN.ok("no worker was cut off at the end of the last boot")
        return
    workers = f"{found.workers} workers were" if found.workers > 1 else "1 worker was"
    cut = f"{workers} cut off at about {story.clock(found.cut_at)}"
    yield SHUTDOWN.info(f"the last shutdown was not clean: {cut}")


def _sleep(_facts: Facts) -> Iterator[Finding]:
    """Report whether it slept since the boot; else whether a desktop may send it to sleep."""
    slept = suspend.since_boot()
    if slept > suspend.NAP:
        yield SLEEP.warn(f"this machine has slept for {duration(slept.total_seconds())} since it was started")
    elif _may_be_suspended():
        yield SLEEP.info("a desktop may send this machine to sleep in the middle of a batch")
    else:
        yield SLEEP.ok("the machine does not go to sleep by itself")


def _may_be_suspended() -> bool:
    """Whether the kernel can, a desktop runs, and the target is not masked."""
    try:
        states = POWER.read_text().split()
        if not {"mem", "disk", "freeze"} & set(states) or not BOOTED.is_dir():
            return False
        systemd = Systemd(Scope.SYSTEM)
        masked = "masked" in systemd.unit_files("suspend.target").values()
        desktop = systemd.show("display-manager.service", "ActiveState").get("ActiveState") == "active"
    except (OSError, VbatchError):
        return False
    return desktop and not masked


CHECKS = (
    Check(name="host.shutdown", finds=(SHUTDOWN,), run=_shutdown, needs=("store.reach", "store.state")),
    Check(name="host.sleep", finds=(SLEEP,), run=_sleep),
)
