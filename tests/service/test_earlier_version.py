"""A service that version 0.1.0 installed: its files, as it wrote them, are known, updated and taken back."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rigs.guest import Guest
from tests.service.test_install import ENVIRONMENT, TEMPLATE, changes
from vbatch import __version__
from vbatch.service import environment, unit
from vbatch.service.unit import InstalledUnit
from vbatch.system import units

FOLDER = Path(__file__).parent / "version_0_1_0"
OLD_UNIT = (FOLDER / "vbatch-worker@.service").read_text()
OLD_ENVIRONMENT = (FOLDER / "worker.env").read_text()


def test_its_files_are_known() -> None:
    """Mutants: another marker before the checksum; another way to find the options in the unit."""
    assert units.intact(OLD_UNIT)
    assert units.intact(OLD_ENVIRONMENT)
    assert unit.read(OLD_UNIT, ["vbatch-worker@0.service"]) == InstalledUnit(
        account="alice", worker_arguments=("--preload", "a model")
    )
    text = environment.updated(OLD_ENVIRONMENT, {"HF_TOKEN": "x"})
    assert units.intact(text)
    assert environment.parse(text) == {"HF_HOME": "/srv/models", "HF_TOKEN": "x"}


def have_old_service(guest: Guest) -> None:
    guest.machine.run(["mkdir", "-p", str(Path(ENVIRONMENT).parent)])
    guest.machine.write(TEMPLATE, OLD_UNIT)
    guest.machine.write(ENVIRONMENT, OLD_ENVIRONMENT)
    guest.machine.run(["systemctl", "daemon-reload"])
    guest.machine.run(["systemctl", "enable", "vbatch-worker@0.service"])


@pytest.mark.root
def test_it_is_updated_with_its_options_and_uninstalled(guest: Guest) -> None:
    """Mutant: another marker before the checksum; the unit counts as changed by hand, and is kept and never updated."""
    before = guest.machine.written()
    have_old_service(guest)
    done = guest.sudo("install-service", "--no-now", env={"HF_TOKEN": "x"})
    assert "changed by hand" not in done.stderr
    text = guest.machine.read(TEMPLATE)
    assert f"# Written by vbatch {__version__}." in text
    assert 'run-worker --preload "a model"\n' in text
    assert "User=alice\n" in text
    assert units.intact(text)
    assert guest.machine.read(ENVIRONMENT).endswith('HF_HOME="/srv/models"\nHF_TOKEN="x"\n')
    guest.sudo("uninstall-service")
    assert changes(before, guest.machine.written()) == set()


@pytest.mark.root
def test_it_is_uninstalled_as_it_is(guest: Guest) -> None:
    """Mutant: as above; a person must force it, and the secrets stay."""
    before = guest.machine.written()
    have_old_service(guest)
    guest.sudo("uninstall-service")
    assert changes(before, guest.machine.written()) == set()
