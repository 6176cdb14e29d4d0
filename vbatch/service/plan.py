"""What install-service would do, as one frozen value: looked up and verified, nothing changed yet."""

from __future__ import annotations

import difflib
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path

from vbatch.config import gpu_setting
from vbatch.errors import NotAllowed, UsageError
from vbatch.service import environment, machine, probe, server_unit, unit
from vbatch.service.accounts import Account, account
from vbatch.service.machine import Chosen
from vbatch.service.unit import InstalledUnit, UnitSpec
from vbatch.store import hosting
from vbatch.store.hosting import Database, Kind
from vbatch.system import units
from vbatch.system.files import text_of
from vbatch.system.systemd import AbsentSystemd, NoSystemd, Systemd, require_running
from vbatch.system.units import TEMPLATE, Places, Scope, instance, places

# Kept in the unit, so that uninstall-service takes back what was switched on with it, and only then.
LINGER_REMARK = "Linger was switched on with this unit."


class FileState(StrEnum):
    """How an installed file compares with the one that would be written."""

    MISSING = "missing"
    CURRENT = "current"
    OUTDATED = "outdated"  # as another version of vbatch wrote it: it is replaced
    EDITED = "edited"  # changed by hand, or not vbatch's: it is kept unless forced


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the person asked for. Account, GPUs and options that are not given stay as they are installed.

    Where nothing is installed they are the person's own, every GPU, and none.
    """

    scope: Scope
    gpus: Sequence[str] = ()
    run_as: str | None = None
    worker_arguments: Sequence[str] = ()
    serve: bool = False
    start: bool = True
    force: bool = False
    dry_run: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlan:
    """A unit file. ``diff`` is what would change in an installed one; ``faults`` are of a person's drop-ins."""

    spec: UnitSpec
    text: str
    state: FileState
    diff: str
    drop_ins: tuple[str, ...]
    faults: tuple[str, ...]
    write: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentPlan:
    """The environment file. ``names`` are the variables that would be added or changed, never values."""

    text: str
    names: tuple[str, ...]

    @property
    def write(self) -> bool:
        """Whether there is anything to write."""
        return bool(self.names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What would be done. ``surplus`` instances are enabled now and would be no longer.

    ``idle_gpus`` are there and get no worker, ``display_gpus`` because they drive a display; ``rival`` is the unit of
    the other scope, if there is one. ``server`` is the unit of ``vbatch serve``, where it is wanted or installed.
    """

    scope: Scope
    places: Places
    account: Account
    systemd: int
    unit: UnitPlan
    server: UnitPlan | None = None
    environment: EnvironmentPlan
    instances: tuple[str, ...]
    surplus: tuple[str, ...]
    linger: bool
    start: bool
    database: Database
    idle_gpus: tuple[int, ...]
    display_gpus: tuple[int, ...]
    rival: Path | None
    unseen: tuple[str, ...] = ()

    @property
    def drain_limit(self) -> timedelta:
        """How long a stop may take the running requests to finish."""
        return self.unit.spec.drain_limit


def plan(wish: Wish) -> Plan:
    """Look, render, verify. A dry run needs neither a systemd nor root: ``unseen`` says what could not be looked up.

    Raises NoSystemd, NotAllowed, UsageError, UnitInvalid, and ConfigError for settings that the service
    could not start with.
    """
    unseen: list[str] = []
    systemd = _systemd(wish, unseen)
    where = places(wish.scope)
    enabled = systemd.enabled_instances(where.units, where.target)
    before = unit.read(text_of(where.unit), enabled)
    owner = _owner(wish, before, unseen)
    wanted = _gpus(wish, before)
    kept, given = text_of(where.environment), environment.worth_keeping(os.environ)
    unseen += environment.left_out(os.environ)
    known = environment.parse(kept)
    of_loader = environment.LIBRARY_PATH if wish.scope is Scope.SYSTEM else None
    libraries = given.get(of_loader) or before.library_path or known.get(of_loader) if of_loader else None
    variables = known | given | ({of_loader: libraries} if of_loader and libraries else {})
    search_path = f"{Path(sys.executable).parent}:{machine.SEARCH_PATH}"
    home = owner.service_home if wish.scope is Scope.SYSTEM else owner.home
    seen = probe.look(owner, home=home, python=sys.executable, search_path=search_path, environment=variables)
    found = hosting.recognise(seen.store_url)
    linger = wish.scope is Scope.USER and not systemd.lingers(owner.name)
    spec = UnitSpec(
        scope=wish.scope,
        systemd=systemd.version(),
        python=sys.executable,
        account=owner,
        environment_file=where.environment,
        search_path=search_path,
        library_path=libraries,
        worker_arguments=tuple(wish.worker_arguments) or before.worker_arguments,
        one_per_gpu=bool(wanted.settings),
        modprobe=machine.modprobe(wanted.numbers),
        drain_limit=timedelta(seconds=seen.drain_seconds),
        after=found.after,
        remote=found.kind is Kind.REMOTE,
        mounts=machine.mounts_of(_folders(found, seen), systemd),
        target=where.target,
        remarks=(LINGER_REMARK,) if LINGER_REMARK in text_of(where.unit) else (),
    )
    instances = tuple(instance(gpu_setting.in_unit(gpu)) for gpu in (wanted.settings or ("0",)))
    chosen = (*wanted.numbers, *wanted.with_display)
    return Plan(
        scope=wish.scope,
        places=where,
        account=owner,
        systemd=spec.systemd,
        unit=_unit_plan(where, spec, systemd, force=wish.force),
        server=_server_plan(where, spec, systemd, wish),
        environment=_environment_plan(kept, given, of_loader),
        instances=instances,
        surplus=tuple(name for name in enabled if name not in instances),
        linger=linger,
        start=wish.start,
        database=found,
        idle_gpus=tuple(gpu for gpu in machine.gpus() if gpu not in chosen) if not wish.gpus else (),
        display_gpus=wanted.with_display,
        rival=_rival(wish.scope, owner),
        unseen=tuple(unseen),
    )


def _systemd(wish: Wish, unseen: list[str]) -> Systemd:
    try:
        require_running(wish.scope)
    except NoSystemd as error:
        if not wish.dry_run:
            raise
        unseen.append(f"{error.message}: its version, its mounts and what is enabled are not looked up")
        return AbsentSystemd(wish.scope)
    return Systemd(wish.scope)


def _folders(found: Database, seen: probe.Seen) -> tuple[str, ...]:
    """Return the folders whose disks are waited for: of the program, the store, the models and the logs."""
    store = [str(found.folder)] if found.folder is not None and found.folder.is_absolute() else []
    return tuple(dict.fromkeys([sys.prefix, *store, *seen.folders]))


def _gpus(wish: Wish, before: InstalledUnit) -> Chosen:
    """Return the GPUs of each worker; none means one worker that owns no GPU. Raises UsageError."""
    wanted = machine.chosen(wish.gpus or before.gpus) if wish.gpus or before.gpus else machine.each()
    if before.one_per_gpu and not wanted.settings:
        raise UsageError(
            "the installed service has one worker for each GPU, and no GPU can be seen: is its driver loaded?",
            hint=f"vbatch doctor gpu, or name them: {units.scoped_command(wish.scope, 'install-service')} --gpu 0",
        )
    return wanted


def _rival(scope: Scope, owner: Account) -> Path | None:
    """Return the installed unit of the other scope: both would work on one queue and want one GPU."""
    other = places(Scope.SYSTEM).unit
    if scope is Scope.SYSTEM:
        other = Path(owner.home, ".config/systemd/user", TEMPLATE)
    return other if other.exists() else None


def _owner(wish: Wish, before: InstalledUnit, unseen: list[str]) -> Account:
    if wish.scope is Scope.USER:
        if wish.run_as is not None:
            raise UsageError("a user service runs as its user", hint="--run-as goes with --system")
        return account(os.environ.get("USER") if os.geteuid() == 0 else None)
    if os.geteuid() != 0:
        refused = NotAllowed(
            "only root can install the machine's own services",
            hint=f"{units.scoped_command(Scope.SYSTEM, 'install-service')}, or without root: "
            f"{units.scoped_command(Scope.USER, 'install-service')}",
        )
        if not wish.dry_run:
            raise refused
        unseen.append(f"{refused.message}: this dry run is of yourself, not of root")
    return account(wish.run_as or before.account)


def _unit_plan(where: Places, spec: UnitSpec, systemd: Systemd, *, force: bool) -> UnitPlan:
    systemd.verify(text := unit.render(spec))
    return _compared(where.unit, where.drop_ins, text, spec, systemd, force=force)


def _server_plan(where: Places, spec: UnitSpec, systemd: Systemd, wish: Wish) -> UnitPlan | None:
    """Return the server's unit, where it is asked for or was installed before."""
    if not wish.serve and not where.server.exists():
        return None
    systemd.verify(text := server_unit.render(spec), name=server_unit.NEW)
    return _compared(where.server, where.server_drop_ins, text, spec, systemd, force=wish.force)


def _compared(
    file: Path, folder: Path, text: str, spec: UnitSpec, systemd: Systemd, *, force: bool
) -> UnitPlan:
    """Compare. A fault in a person's drop-in is reported, and is no reason not to update the unit."""
    there = text_of(file)
    if not there:
        state = FileState.MISSING
    elif there == text:
        state = FileState.CURRENT
    else:
        state = FileState.OUTDATED if units.intact(there) else FileState.EDITED
    drop_ins = tuple(sorted(map(str, folder.glob("*.conf"))))
    return UnitPlan(
        spec=spec,
        text=text,
        state=state,
        diff=_diff(file, there, text) if there else "",
        drop_ins=drop_ins,
        faults=systemd.complaints(text, name=file.name) if drop_ins else (),
        write=state in (FileState.MISSING, FileState.OUTDATED) or (state is FileState.EDITED and force),
    )


def _environment_plan(kept: str, given: Mapping[str, str], without: str | None) -> EnvironmentPlan:
    known = environment.parse(kept)
    changed = {
        name: value for name, value in sorted(given.items()) if known.get(name) != value and name != without
    }
    text = environment.updated(kept, changed, without=without)
    moved = [without] if without in known and without not in environment.parse(text) else []
    return EnvironmentPlan(text=text, names=(*changed, *filter(None, moved)))


def _diff(file: Path, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"{file} (installed)", f"{file} (new)", lineterm=""
    )
    return "\n".join(lines)
