"""Take back what install-service did, and nothing else: data, caches and a person's own changes stay."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vbatch.service import files, seal
from vbatch.service.errors import NotAllowed, SystemdRefused, UnitEdited
from vbatch.service.install import Report, stop
from vbatch.service.plan import LINGER_REMARK
from vbatch.service.scope import Places, Scope, instance, places
from vbatch.service.systemd import Systemd, require_running

STOP_LIMIT = timedelta(hours=1)  # systemd ends a worker at the unit's own stop limit, whatever that is


@dataclass(frozen=True, slots=True, kw_only=True)
class Uninstalled:
    """What was removed, and what was kept because a person made or changed it."""

    scope: Scope
    instances: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]


def uninstall(scope: Scope, *, report: Report, force: bool = False) -> Uninstalled:
    """Stop the workers (they drain), disable them, remove the unit and the environment file.

    Raises UnitEdited for a unit that was changed by hand, unless forced; NotAllowed, NoSystemd.
    """
    require_running(scope)
    if scope is Scope.SYSTEM and os.geteuid() != 0:
        raise NotAllowed(
            "the machine's own services are root's to remove", hint="sudo vbatch uninstall-service --system"
        )
    where = places(scope)
    kept = [str(file) for file in sorted(where.drop_ins.glob("*"))]
    if not where.unit.exists():
        return Uninstalled(scope=scope, instances=(), removed=(), kept=tuple(kept))
    text = where.unit.read_text()
    if not seal.intact(text) and not force:
        raise UnitEdited(f"{where.unit} was changed by hand", hint="vbatch uninstall-service --force")
    systemd = Systemd(scope)
    enabled = systemd.enabled_instances(where.units, where.target)
    names = tuple(sorted({*enabled, *systemd.units(instance("*"))}))
    if names:
        stop(systemd, names, report=report, limit=STOP_LIMIT)
        systemd.systemctl("disable", *names)
        with suppress(SystemdRefused):  # none of them had failed
            systemd.systemctl("reset-failed", *names)
    where.unit.unlink()
    removed = [str(where.unit)]
    if _is_ours(where.environment):
        where.environment.unlink()
        removed.append(str(where.environment))
    elif where.environment.exists():
        kept.append(str(where.environment))
    systemd.systemctl("daemon-reload")
    if LINGER_REMARK in text:
        user = pwd.getpwuid(os.geteuid()).pw_name
        systemd.linger(user, on=False)
        removed.append(f"linger of {user}")
    files.remove_if_empty(*_folders(where))
    return Uninstalled(scope=scope, instances=names, removed=tuple(removed), kept=tuple(kept))


def _is_ours(file: Path) -> bool:
    return file.exists() and seal.intact(file.read_text())


def _folders(where: Places) -> tuple[Path, ...]:
    """Return the folders that installing may have made, innermost first."""
    wants = where.units / f"{where.target}.wants"
    own = (where.drop_ins, wants, where.settings)
    return own if where.units.is_relative_to("/etc") else (*own, where.units, *where.units.parents[:2])
