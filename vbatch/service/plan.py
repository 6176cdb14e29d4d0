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

from vbatch.errors import UsageError
from vbatch.service import database, environment, gpus, probe, seal, unit
from vbatch.service.accounts import Account, account
from vbatch.service.database import Database, Kind
from vbatch.service.errors import NotAllowed
from vbatch.service.scope import Places, Scope, instance, places
from vbatch.service.systemd import Systemd, require_running

SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

# Kept in the unit, so that uninstall-service takes back what was switched on with it, and only then.
LINGER_REMARK = "Linger was switched on with this unit."


class FileState(StrEnum):
    """How an installed file compares with the one that would be written."""

    MISSING = "missing"
    CURRENT = "current"
    OUTDATED = "outdated"  # ours and untouched: it is replaced
    EDITED = "edited"  # changed by hand, or not ours: it is kept unless forced


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What the person asked for. ``gpus`` are the ones to use; none means one worker that owns no GPU."""

    scope: Scope
    gpus: Sequence[int]
    run_as: str | None = None
    worker_arguments: Sequence[str] = ()
    start: bool = True
    force: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitPlan:
    """The unit file. ``diff`` is what would change in an installed one."""

    text: str
    state: FileState
    diff: str
    drop_ins: tuple[str, ...]
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
    """What would be done. ``surplus`` instances are enabled now and would be no longer."""

    scope: Scope
    places: Places
    account: Account
    systemd: int
    unit: UnitPlan
    environment: EnvironmentPlan
    instances: tuple[str, ...]
    surplus: tuple[str, ...]
    linger: bool
    start: bool
    database: Database
    drain_limit: timedelta


def plan(wish: Wish) -> Plan:
    """Look, render, verify.

    Raises NoSystemd, NotAllowed, UsageError, UnitInvalid, and ConfigError for settings that the service
    would stumble over.
    """
    require_running(wish.scope)
    owner = _owner(wish)
    systemd = Systemd(wish.scope)
    where = places(wish.scope)
    variables = environment.read(where.environment) | environment.worth_keeping(os.environ)
    search_path = f"{Path(sys.executable).parent}:{SEARCH_PATH}"
    home = owner.service_home if wish.scope is Scope.SYSTEM else owner.home
    seen = probe.look(owner, home=home, python=sys.executable, search_path=search_path, environment=variables)
    found = database.recognise(seen.store_url)
    linger = wish.scope is Scope.USER and not systemd.lingers(owner.name)
    spec = unit.UnitSpec(
        scope=wish.scope,
        systemd=systemd.version(),
        python=sys.executable,
        account=owner,
        environment_file=where.environment,
        search_path=search_path,
        worker_arguments=tuple(wish.worker_arguments),
        one_per_gpu=bool(wish.gpus),
        modprobe=gpus.modprobe(wish.gpus),
        drain_limit=timedelta(seconds=seen.drain_seconds),
        after=found.after,
        remote=found.kind is Kind.REMOTE,
        folders=_folders(found, seen),
        target=where.target,
        remarks=(LINGER_REMARK,) if linger or LINGER_REMARK in _text(where.unit) else (),
    )
    text = unit.render(spec)
    systemd.verify(text)
    wanted = tuple(instance(gpu) for gpu in (wish.gpus or (0,)))
    enabled = systemd.enabled_instances(where.units, where.target)
    return Plan(
        scope=wish.scope,
        places=where,
        account=owner,
        systemd=spec.systemd,
        unit=_unit_plan(where, text, force=wish.force),
        environment=_environment_plan(where, variables),
        instances=wanted,
        surplus=tuple(name for name in enabled if name not in wanted),
        linger=linger,
        start=wish.start,
        database=found,
        drain_limit=spec.drain_limit,
    )


def _folders(found: Database, seen: probe.Seen) -> tuple[str, ...]:
    """Return the folders whose disks are waited for: of the program, the store, the models and the logs."""
    store = [str(found.folder)] if found.folder is not None and found.folder.is_absolute() else []
    return tuple(dict.fromkeys([sys.prefix, *store, *seen.folders]))


def _owner(wish: Wish) -> Account:
    if wish.scope is Scope.USER:
        if wish.run_as is not None:
            raise UsageError("a user service runs as its user", hint="--run-as goes with --system")
        return account(os.environ.get("USER") if os.geteuid() == 0 else None)
    if os.geteuid() != 0:
        raise NotAllowed(
            "the machine's own services are root's to install",
            hint="sudo vbatch install-service --system, or without root: vbatch install-service --user",
        )
    return account(wish.run_as)


def _unit_plan(where: Places, text: str, *, force: bool) -> UnitPlan:
    installed = _text(where.unit)
    if not installed:
        state = FileState.MISSING
    elif installed == text:
        state = FileState.CURRENT
    else:
        state = FileState.OUTDATED if seal.intact(installed) else FileState.EDITED
    return UnitPlan(
        text=text,
        state=state,
        diff=_diff(where.unit, installed, text) if installed else "",
        drop_ins=tuple(sorted(str(file) for file in where.drop_ins.glob("*.conf"))),
        write=state in (FileState.MISSING, FileState.OUTDATED) or (state is FileState.EDITED and force),
    )


def _environment_plan(where: Places, variables: Mapping[str, str]) -> EnvironmentPlan:
    installed = environment.read(where.environment)
    changed = sorted(name for name, value in variables.items() if installed.get(name) != value)
    return EnvironmentPlan(text=environment.render(variables), names=tuple(changed))


def _diff(file: Path, before: str, after: str) -> str:
    lines = difflib.unified_diff(
        before.splitlines(), after.splitlines(), f"{file} (installed)", f"{file} (new)", lineterm=""
    )
    return "\n".join(lines)


def _text(file: Path) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""
