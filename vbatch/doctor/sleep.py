"""Whether the machine falls asleep over a batch: a desktop suspends it when nobody is at the keyboard."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from vbatch import suspension
from vbatch.doctor.catalogue import Meaning
from vbatch.doctor.checks import Check, Group
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level, info, ok
from vbatch.errors import VbatchError
from vbatch.service.scope import Scope
from vbatch.service.systemd import BOOTED, Systemd
from vbatch.text import duration

MEANINGS = {
    "host.sleep": Meaning(
        means="Whether the machine may fall asleep in the middle of a batch. A desktop suspends it after a while "
        "without a person, however busy the GPU is, and a driver may not come out of that as it was.",
        remedy="sudo systemctl mask suspend.target sleep.target hibernate.target; `unmask` takes it back.",
    ),
}

POWER = Path("/sys/power/state")  # what the kernel can do: "freeze mem disk"
_NEVER = ("sudo systemctl mask suspend.target sleep.target hibernate.target   # unmask takes it back",)


def _sleep(_facts: Facts) -> Iterator[Finding]:
    """Say whether it slept since the boot; else whether a desktop may send it to sleep."""
    slept = suspension.since_boot()
    if slept > suspension.NAP:
        yield Finding(
            id="host.sleep",
            level=Level.WARN,
            what=f"this machine has slept for {duration(slept.total_seconds())} since it was started",
            why="no batch goes on meanwhile, and the GPU's driver may not come out of it as it was",
            commands=_NEVER,
        )
    elif _may_be_suspended():
        yield info(
            "host.sleep",
            "a desktop may send this machine to sleep in the middle of a batch",
            "it looks for a person at the keyboard, not for a busy GPU",
            commands=_NEVER,
        )
    else:
        yield ok("host.sleep", "the machine does not fall asleep by itself")


def _may_be_suspended() -> bool:
    """Whether the kernel can, a desktop runs, and systemd was not forbidden to."""
    try:
        states = POWER.read_text().split()
        if not {"mem", "disk", "freeze"} & set(states) or not BOOTED.is_dir():
            return False
        systemd = Systemd(Scope.SYSTEM)
        forbidden = "masked" in systemd.unit_files("suspend.target").values()
        desktop = systemd.show("display-manager.service", "ActiveState").get("ActiveState") == "active"
    except (OSError, VbatchError):
        return False
    return desktop and not forbidden


CHECKS = (Check(name="host.sleep", group=Group.HOST, run=_sleep),)
