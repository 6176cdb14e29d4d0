"""Take back what install-service did, and nothing else: data, caches and a person's own changes stay."""

from __future__ import annotations

import os
import pwd
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vbatch.errors import NotAllowed, VbatchError
from vbatch.service import server
from vbatch.service.install import Report, stop
from vbatch.service.plan import LINGER_REMARK
from vbatch.system import units
from vbatch.system.files import text_of
from vbatch.system.systemd import Systemd, SystemdRefused, require_running
from vbatch.system.units import Places, Scope, instance, places

STOP_LIMIT = timedelta(hours=1)  # systemd ends a worker at the unit's own stop limit, whatever that is


class UnitEdited(VbatchError):
    """The installed unit was changed by hand."""

    code = "unit_edited"


@dataclass(frozen=True, slots=True, kw_only=True)
class Uninstalled:
    """What was removed, and what was kept because a person made or changed it.

    ``lingers`` names the user whose linger came with the unit, where only an administrator may switch it off.
    """

    scope: Scope
    instances: tuple[str, ...]
    removed: tuple[str, ...]
    kept: tuple[str, ...]
    lingers: str | None = None


def uninstall(scope: Scope, *, report: Report, force: bool = False) -> Uninstalled:
    """Remove the server; stop the workers (they drain), disable them, remove the environment file and, last, the unit.

    Goes by whatever is there of the three: an earlier call may have been cut off, or a person was here. Raises
    UnitEdited for a unit that was changed by hand, unless forced; NotAllowed, NoSystemd.
    """
    require_running(scope)
    if scope is Scope.SYSTEM and os.geteuid() != 0:
        raise NotAllowed(
            "only root can remove the machine's own services",
            hint=units.scoped_command(scope, "uninstall-service"),
        )
    where = places(scope)
    kept = [
        str(file) for folder in (where.drop_ins, where.server_drop_ins) for file in sorted(folder.glob("*"))
    ]
    text = text_of(where.unit)
    if (edited := server.edited(where)) is not None and not force:
        raise UnitEdited(
            f"{edited} was changed by hand",
            hint=units.scoped_command(scope, "uninstall-service", "--force"),
        )
    removed: list[str] = []
    systemd = Systemd(scope)
    served = server.remove(
        systemd, where, lambda names: stop(systemd, names, report=report, limit=STOP_LIMIT)
    )
    enabled = systemd.enabled_instances(where.units, where.target)
    names = tuple(sorted({*enabled, *systemd.units(instance("*"))}))
    if names:
        stop(systemd, names, report=report, limit=STOP_LIMIT)
        with suppress(SystemdRefused):  # none of them had failed
            systemd.systemctl("reset-failed", *names)
    if names and text:
        systemd.systemctl("disable", *names)
    for name in enabled:  # systemctl refuses to disable what has no unit file any more
        (where.wants / name).unlink(missing_ok=True)
    _remove_environment(where, removed, kept)
    lingers = _switch_linger_off(systemd, removed) if LINGER_REMARK in text else None
    if text:
        where.unit.unlink()
        removed.insert(0, str(where.unit))
    elif enabled:
        removed.append(f"{where.wants}/{instance('*')}")
    if served:
        removed.append(str(where.server))
    try:
        systemd.systemctl("daemon-reload")
    except SystemdRefused:
        if scope is Scope.SYSTEM:
            raise  # but the systemd of a user who is not logged in may have ended with the linger
    for folder in _folders(where):
        with suppress(OSError):  # a person's files are in it, or it is gone
            folder.rmdir()
    return Uninstalled(
        scope=scope, instances=(*names, *served), removed=tuple(removed), kept=tuple(kept), lingers=lingers
    )


def _remove_environment(where: Places, removed: list[str], kept: list[str]) -> None:
    """Remove the environment file, but for one that a person changed."""
    if units.intact(text_of(where.environment)):
        where.environment.unlink()
        removed.append(str(where.environment))
    elif where.environment.exists():
        kept.append(str(where.environment))


def _switch_linger_off(systemd: Systemd, removed: list[str]) -> str | None:
    """Have the user's services start at the login again; return the user where systemd refuses that."""
    user = pwd.getpwuid(os.geteuid()).pw_name
    try:
        systemd.linger(user, on=False)
    except SystemdRefused:
        return user
    removed.append(f"linger of {user}")
    return None


def _folders(where: Places) -> tuple[Path, ...]:
    """Return the folders that installing may have made, innermost first."""
    own = (where.drop_ins, where.wants, where.settings)
    return own if where.units.is_relative_to("/etc") else (*own, where.units, *where.units.parents[:2])
