"""The unit is what systemd accepts, of the version that is there, and is as closed as CUDA allows."""

from __future__ import annotations

import re
import shutil
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.rigs.nvml import StandInDriver
from vbatch.service import machine, server_unit, unit
from vbatch.service.accounts import Account
from vbatch.service.machine import Mount
from vbatch.service.unit import UnitSpec
from vbatch.system import units
from vbatch.system.systemd import STRICT_VERIFY, Systemd, UnitInvalid
from vbatch.system.units import Scope, places

ROOT = Account(name="root", uid=0, gid=0, home="/root", has_home=True)
PERSON = Account(name="daemon", uid=1, gid=1, home="/home/daemon", has_home=True)
HOMELESS = replace(PERSON, has_home=False)

# The systemd that first knew a key, where that is later than the oldest one supported (its man pages say).
SINCE = {"RestartSteps": 254, "RestartMaxDelaySec": 254}

# What the unit is exposed to (0 sealed, 10 open), measured with the systemd of Debian 12; the rest is what CUDA and
# outputs need. Other versions count other things.
MEASURED_WITH = 252
EXPOSURE = {"root": 4.0, "daemon": 2.9}
ELSEWHERE = 0.5

needs_systemd = pytest.mark.skipif(
    shutil.which("systemd-analyze") is None, reason="systemd-analyze is not installed"
)


def spec(scope: Scope = Scope.SYSTEM, **changes: object) -> UnitSpec:
    known = UnitSpec(
        scope=scope,
        systemd=252,
        python="/usr/bin/env",
        account=PERSON,
        environment_file=places(scope).environment,
        search_path="/opt/vbatch/bin:/usr/bin:/bin",
        worker_arguments=(),
        one_per_gpu=True,
        modprobe=(("/usr/bin/env", "-c", "255", "-c", "0"), ("/usr/bin/env", "-u", "-c", "0")),
        drain_limit=timedelta(minutes=5),
        after=("postgresql.service", "docker.service"),
        remote=False,
        mounts=(Mount(point="/mnt/a disk", unit="mnt-a\\x20disk.mount"),),
        target=places(scope).target,
    )
    return replace(known, **changes)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def user_runtime(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """systemd-analyze --user wants a runtime folder, which a login would have made."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))


@needs_systemd
@pytest.mark.parametrize("account", [ROOT, PERSON, HOMELESS], ids=["root", "person", "homeless"])
@pytest.mark.parametrize("version", [249, 252, 254, 257])
@pytest.mark.parametrize("scope", list(Scope))
def test_systemd_accepts_every_unit(scope: Scope, version: int, account: Account) -> None:
    analyze = Systemd(scope)
    if analyze.version() < STRICT_VERIFY:
        pytest.skip("this systemd's verify does not fail on unknown keys")
    text = unit.render(spec(scope, systemd=version, account=account, remote=version == 252))
    analyze.verify(without_newer_keys(text, analyze.version()))


@needs_systemd
@pytest.mark.parametrize("account", [ROOT, PERSON, HOMELESS], ids=["root", "person", "homeless"])
@pytest.mark.parametrize("scope", list(Scope))
def test_systemd_accepts_the_servers_unit(scope: Scope, account: Account) -> None:
    """Mutant: a key that systemd does not know; it is seen as one of the server."""
    analyze = Systemd(scope)
    if analyze.version() < STRICT_VERIFY:
        pytest.skip("this systemd's verify does not fail on unknown keys")
    text = server_unit.render(spec(scope, account=account, remote=True, library_path="/opt/lib"))
    analyze.verify(text, name=server_unit.NEW)
    with pytest.raises(UnitInvalid, match="KilMode"):
        analyze.verify(text.replace("KillMode=", "KilMode="), name=server_unit.NEW)


def test_the_server_is_confined_and_ordered_as_the_worker_is() -> None:
    """Mutants: a unit without the sandbox; without the order; with what only a GPU needs; one that gives up at 78."""
    text, of_worker = server_unit.render(spec()), unit.render(spec())
    assert all(f"\n{name}={value}\n" in text for name, value in unit.SANDBOX)
    for key in (
        "User",
        "Wants",
        "StartLimitIntervalSec",
        "EnvironmentFile",
        "WantedBy",
        "CapabilityBoundingSet",
    ):
        wanted = re.findall(rf"^{key}=.*$", of_worker, re.M)
        assert wanted
        assert re.findall(rf"^{key}=.*$", text, re.M) == wanted
    assert "After=network.target postgresql.service docker.service\n" in text
    assert "\nExecStart=:/usr/bin/env -P -m vbatch serve\n" in text
    assert "\nRestartPreventExitStatus=2\n" in text
    assert "\nLimitCORE=0\n" in text
    assert not re.search(r"GPU|nvidia|doctor|%i|RuntimeDirectory", text)
    assert units.intact(text)
    assert "StateDirectory=vbatch\n" in server_unit.render(spec(account=HOMELESS))
    found = keys(server_unit.render(spec(Scope.USER)))
    assert not found & {"User", "NoNewPrivileges", "CapabilityBoundingSet", "After"}


@needs_systemd
def test_the_gate_refuses_what_systemd_does_not_know() -> None:
    """The mutant: verify without --recursive-errors=no and without reading stderr lets this pass."""
    text = unit.render(spec()).replace("KillMode=", "KilMode=")
    with pytest.raises(UnitInvalid, match="KilMode"):
        Systemd(Scope.SYSTEM).verify(text)


@pytest.mark.parametrize("version", [249, 252, 254, 257])
@pytest.mark.parametrize("scope", list(Scope))
def test_no_key_is_newer_than_the_systemd_that_reads_it(scope: Scope, version: int) -> None:
    text = unit.render(spec(scope, systemd=version))
    assert without_newer_keys(text, version) == text
    assert ("RestartSteps=" in text) == (version >= 254)


@needs_systemd
@pytest.mark.parametrize("account", [ROOT, PERSON], ids=["root", "person"])
def test_the_security_score_is_kept(account: Account) -> None:
    """Mutant: any key of the sandbox less."""
    analyze = Systemd(Scope.SYSTEM)
    most = EXPOSURE[account.name] + (0 if analyze.version() == MEASURED_WITH else ELSEWHERE)
    assert analyze.exposure(unit.render(spec(account=account))) <= most
    assert analyze.exposure(server_unit.render(spec(account=account)), name=units.SERVER_UNIT) <= most


@pytest.mark.parametrize(
    "line",
    [
        "ExecStopPost=-:/usr/bin/env -P -m vbatch doctor gpu queue --fix --yes",  # or its engines hold the GPU
        "TimeoutAbortSec=30s",  # or a hung worker that the watchdog ends has the whole stop limit to hang on
        "OOMPolicy=continue",  # or one engine that the kernel ends takes its worker along
        "LimitCORE=0",  # or prompts are in core dumps
        "KillMode=mixed",  # or an engine is stopped while its worker drains
        "WatchdogSec=3min",
        "Type=notify",
        "Restart=on-failure",
        "UMask=0077",
    ],
)
def test_what_nothing_else_would_miss_is_there(line: str) -> None:
    """Mutant: the unit without that line; systemd takes it, and no other test notices."""
    assert f"\n{line}\n" in unit.render(spec())


def test_options_reach_the_worker() -> None:
    """Such as the model to load at boot. Mutant: an ExecStart= without them."""
    text = unit.render(spec(worker_arguments=("--preload", "qwen-8b")))
    assert "\nExecStart=:/usr/bin/env -P -m vbatch run-worker --preload qwen-8b\n" in text


def test_hardening_leaves_what_cuda_jit_and_outputs_need() -> None:
    """Each of these breaks a GPU, a compiler, or an output beside its input, in ways no CPU test can see."""
    harmful = {
        "MemoryDenyWriteExecute",
        "PrivateDevices",
        "DevicePolicy",
        "DeviceAllow",
        "ProtectClock",  # implies a device list
        "PrivateTmp",
        "ProtectHome",
        "RemoveIPC",
        "ProtectProc",
        "PrivateNetwork",
        "IPAddressDeny",
    }
    for scope in Scope:
        assert not harmful & keys(unit.render(spec(scope)))
    assert ("ProtectSystem", "full") in unit.SANDBOX


def test_a_user_service_takes_no_key_that_only_the_machine_has() -> None:
    """A user's systemd cannot drop privileges, nor load the GPU's module without a set-uid program."""
    found = keys(unit.render(spec(Scope.USER)))
    assert not found & {"User", "StateDirectory", "NoNewPrivileges", "CapabilityBoundingSet", "After"}
    assert found >= {"Type", "WatchdogSec", "KillMode", "RuntimeDirectory", "EnvironmentFile"}


def test_a_slow_database_never_ends_in_a_permanent_failure() -> None:
    text = unit.render(spec())
    assert "StartLimitIntervalSec=0" in text
    assert "RestartPreventExitStatus=2 78" in text
    assert re.search(r"^(Requires|BindsTo|Requisite|PartOf)=", text, re.M) is None


def test_the_stop_limit_is_above_the_drain_limit() -> None:
    assert "TimeoutStopSec=6min" in unit.render(spec())
    assert "TimeoutStopSec=150s" in unit.render(spec(drain_limit=timedelta(seconds=90)))


def test_the_network_is_waited_for_only_where_the_store_is_remote() -> None:
    """An offline workstation would otherwise spend two minutes of each boot on network-online.target."""
    assert "network-online.target" not in unit.render(spec())
    assert "Wants=network-online.target" in unit.render(spec(remote=True))


def test_an_account_without_a_home_gets_one_from_systemd() -> None:
    """Mutant: XDG variables beside HOME, which that account's own commands do not know."""
    text = unit.render(spec(account=HOMELESS))
    assert "StateDirectory=vbatch\n" in text
    assert "\nEnvironment=HOME=%S/vbatch\n" in text
    assert "XDG" not in text
    assert "StateDirectory" not in keys(unit.render(spec(account=PERSON)))


def test_doctor_and_worker_see_the_same_gpu() -> None:
    """Mutant: ``--gpu %i`` for the worker alone; doctor then looks at the first GPU for each instance."""
    text = unit.render(spec())
    assert "\nEnvironment=VBATCH_GPU=%i\n" in text
    assert "--gpu" not in text
    assert "VBATCH_GPU" not in unit.render(spec(one_per_gpu=False))


@pytest.mark.parametrize(
    ("wanted", "facts", "settings", "left_out"),
    [
        (None, ["gpu", "display 1", "gpu", "gpu"], ("1", "2"), (0,)),
        (["all"], ["gpu", "display 1", "gpu", "gpu"], ("1", "2"), (0,)),
        (["all", "0"], ["gpu", "display 1", "gpu", "gpu"], ("0", "1", "2"), ()),
        (["2, 0", "1"], ["gpu", "display 1", "gpu", "gpu"], ("1", "2,0"), ()),
        (None, ["gpu", "display 1", "gpu", "display 1", "gpu", "display 1"], ("0", "1", "2"), ()),
        (None, ["err 9"], ("0", "1", "2"), ()),
    ],
)
def test_a_unit_for_each_gpu_without_a_display(  # noqa: PLR0917
    driver: StandInDriver,
    monkeypatch: pytest.MonkeyPatch,
    wanted: list[str] | None,
    facts: list[str],
    settings: tuple[str, ...],
    left_out: tuple[int, ...],
) -> None:
    """Mutants: the display's GPU too; left out though it is named, or all drive one; none without the driver."""
    driver.says(*facts)
    monkeypatch.setattr(machine, "gpus", lambda: (0, 1, 2))
    found = machine.each() if wanted is None else machine.chosen(wanted)
    assert (found.settings, found.with_display) == (settings, left_out)


def test_every_device_node_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: ``-u -c 0`` alone, which makes /dev/nvidia-uvm and neither /dev/nvidiactl nor /dev/nvidia0."""
    program = tmp_path / "nvidia-modprobe"
    program.touch(mode=0o755)
    monkeypatch.setattr(machine, "SEARCH_PATH", str(tmp_path))
    monkeypatch.setattr(machine, "gpus", lambda: (0, 1))
    assert machine.modprobe((1,)) == (
        (str(program), "-c", "255", "-c", "0", "-c", "1"),
        (str(program), "-u", "-c", "0"),
    )
    assert (
        len(machine.modprobe((0, 3))[0]) == 1 + 2 * 5
    )  # the driver is not loaded yet, or counts another way
    assert machine.modprobe(()) == ()
    text = unit.render(spec(modprobe=machine.modprobe((1,))))
    assert f"ExecStartPre=-+:{program} -c 255 -c 0 -c 1\n" in text
    assert f"ExecStartPre=-+:{program} -u -c 0\n" in text
    assert "modprobe" not in unit.render(spec(Scope.USER, modprobe=machine.modprobe((1,))))


def test_root_s_own_commands_see_no_libraries_of_a_person() -> None:
    """Mutant: LD_LIBRARY_PATH in the environment file or by Environment=, which root's commands get too."""
    text = unit.render(spec(library_path="/home/alice/my lib:/opt/cuda"))
    lines = text.splitlines()
    as_root = [line for line in lines if re.match(r"Exec\w+=-?\+", line)]
    named = [line for line in lines if "LD_LIBRARY_PATH" in line]
    assert len(as_root) == 3
    assert len(named) == 3
    assert all(re.match(r"Exec\w+=-?:/usr/bin/env \"LD_LIBRARY_PATH=/home/alice/my lib:/opt/cuda\" ", line)
               for line in named)  # fmt: skip
    assert unit.read(text, []).library_path == "/home/alice/my lib:/opt/cuda"
    assert unit.read(text, []).worker_arguments == ()
    assert unit.read(unit.render(spec()), []).library_path is None


def test_root_runs_no_program_of_a_person(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At each boot, that is; they are looked for in the machine's own folders. Mutant: ``which`` without a path."""
    for name in ("mountpoint", "nvidia-modprobe"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert not machine.mount_check().startswith(str(tmp_path))
    assert str(tmp_path) not in str(machine.modprobe((0,)))


def test_a_changed_line_breaks_the_seal() -> None:
    text = unit.render(spec())
    assert units.intact(text)
    assert not units.intact(text.replace("WatchdogSec=3min", "WatchdogSec=9min"))
    assert not units.intact(text.partition("\n")[2])


def without_newer_keys(text: str, version: int) -> str:
    """Leave out what this version of systemd cannot know yet."""
    newer = {key for key, since in SINCE.items() if since > version}
    return "\n".join(line for line in text.split("\n") if line.partition("=")[0] not in newer)


def keys(text: str) -> set[str]:
    return {line.partition("=")[0] for line in text.splitlines() if "=" in line and line[0] not in "#["}
