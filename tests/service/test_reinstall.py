"""install-service again, after other calls, other people and half an uninstallation: what it keeps and says."""

from __future__ import annotations

import pytest

from tests.rigs.guest import HOME, PERSON, UNIT, Guest
from tests.service.test_install import ENVIRONMENT, TEMPLATE, changes, enabled
from tests.service.test_unit import spec
from vbatch.errors import UsageError
from vbatch.service import environment, machine, unit
from vbatch.service.environment import updated
from vbatch.service.plan import Wish, _gpus
from vbatch.service.unit import InstalledUnit
from vbatch.system import units
from vbatch.system.units import Scope

ODD = "a \"b\" \\c $HOME %h `d` 'e'"


def test_a_unit_shows_what_it_was_made_for() -> None:
    text = unit.render(spec(worker_arguments=("--preload", ODD, "--served-model-name", "a run-worker b")))
    enabled_instances = ["vbatch-worker@3.service", "vbatch-worker@0_10.service", "vbatch-worker@1.service"]
    assert unit.read(text, enabled_instances) == InstalledUnit(
        account="daemon",
        worker_arguments=("--preload", ODD, "--served-model-name", "a run-worker b"),
        one_per_gpu=True,
        gpus=("0,10", "1", "3"),
    )
    assert (
        unit.read(unit.render(spec(Scope.USER, one_per_gpu=False)), ["vbatch-worker@0.service"])
        == InstalledUnit()
    )
    assert unit.read("", []) == InstalledUnit()


def test_the_gpus_of_a_service_do_not_vanish_with_their_driver(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: no GPU seen, no GPU used: the next boot's worker would run on none, or on the wrong one."""
    monkeypatch.setattr(machine, "gpus", lambda: ())
    wish = Wish(scope=Scope.SYSTEM)
    assert _gpus(wish, InstalledUnit()).settings == ()
    assert _gpus(wish, InstalledUnit(one_per_gpu=True, gpus=("0,1", "2"))).settings == ("0,1", "2")
    other = Wish(scope=Scope.SYSTEM, gpus=["2", "1", "2"])
    assert _gpus(other, InstalledUnit(one_per_gpu=True, gpus=("0",))).settings == ("1", "2")
    with pytest.raises(UsageError, match="is its driver loaded"):
        _gpus(wish, InstalledUnit(one_per_gpu=True))


def test_an_environment_file_that_was_not_edited_is_rewritten() -> None:
    text = updated(updated("", {"B": "1", "C": "x"}), {"A": "2", "B": "3"})
    assert units.intact(text)
    assert environment.parse(text) == {"A": "2", "B": "3", "C": "x"}


def test_an_edited_environment_file_is_added_to() -> None:
    """Mutant: write what was understood of it; comments and odd lines are lost, and the seal is whole again."""
    edited = updated("", {"B": "1"}) + '# mine\nexport OLD=1\nHF_Y="a\\w"'
    text = updated(edited, {"B": "2"})
    assert text == edited + '\nB="2"\n'
    assert not units.intact(text)
    assert environment.parse(text) == {"B": "2", "HF_Y": "a\\w"}


@pytest.mark.root
def test_a_plain_call_keeps_options_gpus_and_account(guest: Guest) -> None:
    """Which is what doctor advises. Mutant: the defaults; it took the options away and disabled the second GPU."""
    guest.machine.run(["useradd", "--create-home", "bob"])
    chosen = ("--run-as", "bob", "--gpu", "0", "--gpu", "1", "--", "--engine", "vllm", "--preload", ODD)
    guest.sudo("install-service", "--no-now", *chosen)
    before = guest.machine.written()
    done = guest.sudo("install-service", "--no-now")
    assert "already current" in done.stdout
    assert "sudo -u bob HOME=/home/bob " in done.stdout
    assert changes(before, guest.machine.written()) == set()
    guest.sudo("install-service", "--no-now", "--run-as", PERSON, "--gpu", "1", "--", "--engine", "echo")
    assert enabled(guest) == ["vbatch-worker@1.service"]
    text = guest.machine.read(TEMPLATE)
    assert f"User={PERSON}" in text
    assert "--preload" not in text


@pytest.mark.root
def test_an_edited_environment_file_is_kept_at_the_end(guest: Guest) -> None:
    guest.sudo("install-service", "--no-now", env={"VBATCH_ENGINE": "echo"})
    guest.machine.write(ENVIRONMENT, guest.machine.read(ENVIRONMENT) + "# mine\n")
    guest.sudo("install-service", "--no-now", env={"https_proxy": "http://proxy:1", "PGSSLMODE": "require"})
    text = guest.machine.read(ENVIRONMENT)
    assert text.endswith('# mine\nPGSSLMODE="require"\nhttps_proxy="http://proxy:1"\n')
    assert f"kept {ENVIRONMENT}" in guest.sudo("uninstall-service").stdout
    assert guest.machine.read(ENVIRONMENT) == text


@pytest.mark.root
def test_uninstalling_continues_where_an_earlier_call_was_cut_off(guest: Guest) -> None:
    """Mutant: without a unit there is nothing to do; the password and links to nowhere stay behind."""
    before = guest.machine.written()
    guest.sudo("install-service", "--no-now", "--gpu", "0", "--gpu", "1", env={"HF_TOKEN": "hf_s3cr"})
    guest.machine.run(["rm", TEMPLATE])
    done = guest.sudo("uninstall-service")
    assert f"removed {ENVIRONMENT}" in done.stdout
    assert changes(before, guest.machine.written()) == set()
    assert "no system service of vbatch is installed" in guest.sudo("uninstall-service").stdout


@pytest.mark.root
def test_a_fault_in_a_drop_in_is_reported_and_blocks_nothing(guest: Guest) -> None:
    """Mutant: verify the unit together with the person's drop-ins, and call a typo there a fault of vbatch's."""
    guest.sudo("install-service", "--no-now")
    guest.drop_in("[Service]\nRestrtSec=1s\n")
    done = guest.sudo("install-service", "--no-now", "--", "--max-inflight", "7")
    assert "systemd does not accept one of your drop-ins" in done.stderr
    assert "test.conf:2: Unknown key" in done.stderr
    assert "--max-inflight 7" in guest.machine.read(TEMPLATE)


@pytest.mark.root
def test_a_second_service_in_the_other_scope_is_reported(guest: Guest) -> None:
    guest.machine.write(f"{HOME}/.config/systemd/user/vbatch-worker@.service", "[Service]\n")
    done = guest.sudo("install-service", "--no-now")
    assert "there is also a user service of vbatch" in done.stderr
    assert "vbatch uninstall-service --user" in done.stderr


@pytest.mark.root
def test_a_worker_that_ends_at_once_is_no_endless_wait(guest: Guest) -> None:
    """Mutant: wait for active or failed only; a worker that ends with 0 is neither."""
    guest.sudo("install-service", "--no-now", "--", "--engine", "echo")
    guest.drop_in("[Service]\nType=oneshot\nExecStartPre=\nExecStart=\nExecStart=true\nRestart=no\n")
    done = guest.sudo("install-service", check=False)
    assert done.returncode == 1
    assert f"{UNIT} did not start" in done.stderr
