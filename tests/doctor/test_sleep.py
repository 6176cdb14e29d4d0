"""A machine that falls asleep over a batch."""

from __future__ import annotations

import json
import time
from datetime import timedelta

import pytest

from tests.rigs.guest import Guest
from tests.service.conftest import make_guest
from vbatch import config
from vbatch.doctor.checks import power
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Level
from vbatch.system import suspend

__all__ = ["make_guest"]

DESKTOP = "[Service]\nExecStart=/bin/sleep infinity\n"


def test_a_machine_that_has_slept(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: looking only at what it may do; who slept is a proof."""
    monkeypatch.setattr(suspend, "since_boot", lambda: timedelta(hours=7))
    (finding,) = power._sleep(Facts(settings=config.load()))
    assert finding.level is Level.WARN
    assert "slept for 7 h since" in finding.what
    assert "systemctl mask" in finding.commands[0]


def test_the_sleep_is_what_one_clock_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clocks = {time.CLOCK_BOOTTIME: 5000.0, time.CLOCK_MONOTONIC: 1400.0}
    monkeypatch.setattr(time, "clock_gettime", clocks.__getitem__)
    assert suspend.since_boot() == timedelta(hours=1)


@pytest.mark.root
def test_a_desktop_that_may_suspend_it(guest: Guest) -> None:
    """Mutant: not asking whether somebody has forbidden it; the advice would never end."""
    guest.mutate("vbatch/doctor/checks/power.py", '"/sys/power/state"', '"/etc/power"')

    def level() -> str:
        done = guest.vbatch("doctor", "host.sleep", "--json", check=False)
        found: str = next(
            one["level"] for one in json.loads(done.stdout)["findings"] if one["id"] == "host.sleep"
        )
        return found

    guest.machine.write("/etc/systemd/system/display-manager.service", DESKTOP)
    guest.machine.run(["systemctl", "daemon-reload"])
    guest.machine.run(["systemctl", "start", "display-manager.service"])
    assert level() == "ok", "the kernel cannot"
    guest.machine.write("/etc/power", "freeze mem disk\n")
    assert level() == "info"
    guest.machine.run(["systemctl", "mask", "suspend.target"])
    assert level() == "ok"
    guest.machine.run(["systemctl", "unmask", "suspend.target"])
    guest.machine.run(["systemctl", "stop", "display-manager.service"])
    assert level() == "ok", "nobody sends a server to sleep"
