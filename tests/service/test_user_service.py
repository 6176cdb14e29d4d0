"""A person's own service: no root, linger, its own folders; and everything of it taken back."""

from __future__ import annotations

import pytest

from tests.rigs.guest import HOME, PERSON, Guest
from vbatch.service.plan import LINGER_REMARK

pytestmark = pytest.mark.root

LINGERS = f"/var/lib/systemd/linger/{PERSON}"
UNIT = f"{HOME}/.config/systemd/user/vbatch-worker@.service"


@pytest.fixture(name="person")
def log_in(guest: Guest) -> Guest:
    """A person whose systemd runs, as after a login."""
    uid = guest.machine.run(["id", "-u", PERSON]).stdout.strip()
    guest.machine.run(["systemctl", "start", f"user@{uid}.service"])
    return guest


def test_it_starts_at_boot_without_root_and_without_a_login(person: Guest) -> None:
    """The mutant: without linger nothing starts before the person logs in."""
    done = person.vbatch("install-service", "--no-now", "--", "--engine", "echo")
    if "sudo loginctl" in done.stdout:  # a machine without polkit
        person.machine.run(["loginctl", "enable-linger", PERSON])
    text = person.machine.read(UNIT)
    assert "WantedBy=default.target" in text
    assert "User=" not in text
    person.machine.sync()
    person.machine.cut_power()
    person.machine.boot()
    person.machine.wait_for("the person's worker is started", person.journal_has("Starting vbatch-worker@0"))


def test_linger_that_only_an_administrator_may_switch_on(person: Guest) -> None:
    person.machine.run(["systemctl", "mask", "--now", "polkit.service"])
    done = person.vbatch("install-service", "--no-now")
    assert "sudo loginctl enable-linger alice" in done.stdout
    assert "Linger" not in person.machine.read(UNIT)


def test_linger_that_an_administrator_switched_on_stays(person: Guest) -> None:
    """Mutant: the remark goes into the unit before linger is on; uninstall then takes it for our own."""
    person.machine.run(["systemctl", "mask", "--now", "polkit.service"])
    person.vbatch("install-service", "--no-now")
    person.machine.run(["loginctl", "enable-linger", PERSON])
    assert "already current" in person.vbatch("install-service", "--no-now").stdout
    done = person.vbatch("uninstall-service")
    assert "linger" not in done.stdout
    assert LINGERS in person.machine.written()


def test_linger_that_cannot_be_switched_off_is_kept(person: Guest) -> None:
    """Mutant: what loginctl refuses ends the uninstallation half-way."""
    person.vbatch("install-service", "--no-now")
    text = person.machine.read(UNIT)
    if LINGER_REMARK not in text:  # a machine without polkit
        pytest.skip("linger needs an administrator here")
    person.machine.run(["systemctl", "mask", "--now", "polkit.service"])
    assert "sudo loginctl disable-linger alice" in person.vbatch("uninstall-service").stdout
    assert UNIT not in person.machine.written()


def test_uninstalling_leaves_a_home_as_it_was(person: Guest) -> None:
    before = person.machine.written()
    person.vbatch("install-service", "--no-now", env={"VBATCH_ENGINE": "echo"})
    assert UNIT in person.machine.written()
    person.vbatch("uninstall-service")
    after = person.machine.written()
    places = (HOME, "/var/lib/systemd/linger")
    assert {path for path in before.keys() ^ after.keys() if path.startswith(places)} == set()


def test_without_a_login_there_is_a_hint(guest: Guest) -> None:
    done = guest.vbatch("install-service", check=False)
    assert done.returncode == 1
    assert "hint: sudo loginctl enable-linger alice" in done.stderr


def test_a_person_cannot_install_for_the_machine(guest: Guest) -> None:
    done = guest.vbatch("install-service", "--system", check=False)
    assert done.returncode == 2
    assert "vbatch install-service --system, or without root: vbatch install-service --user" in done.stderr
