"""Checks of the service: installed, enabled, current, and if it failed, why, in its own last words."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vbatch import __version__
from vbatch.doctor.catalogue import Meaning
from vbatch.doctor.checks import Check, Group
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level, info, ok, skip
from vbatch.service import seal
from vbatch.service.errors import NoSystemd, SystemdRefused
from vbatch.service.scope import Places, Scope, instance, places
from vbatch.service.systemd import Systemd, require_running

MEANINGS = {
    "service.none": Meaning(
        means="vbatch is not installed as a service; a worker runs while somebody runs one.",
        remedy="vbatch install-service has it come back by itself after each boot.",
    ),
    "service.no_systemd": Meaning(
        means="systemd does not run this machine, or not for this user.",
        remedy="vbatch install-service says what to do instead.",
    ),
    "service.running": Meaning(means="The service runs, and what it says it does.", remedy="Nothing to do."),
    "service.disabled": Meaning(
        means="The unit is installed, but nothing starts it at boot.", remedy="vbatch install-service"
    ),
    "service.outdated": Meaning(
        means="The unit was written by another version of vbatch.", remedy="vbatch install-service renews it."
    ),
    "service.broken": Meaning(
        means="The unit starts a Python that is not there any more: its environment was moved or deleted.",
        remedy="vbatch install-service, from the environment that is to be used.",
    ),
    "service.edited": Meaning(
        means="The unit was changed by hand.",
        remedy="Nothing; systemctl edit keeps changes apart, so that updates do not meet them.",
    ),
    "service.failed": Meaning(
        means="The service ended and is not started again, or is between two tries.",
        remedy="Mend what its last words name, then: systemctl restart vbatch-worker@0.",
    ),
    "service.stopped": Meaning(
        means="The service is installed and was stopped.", remedy="systemctl start vbatch-worker@0"
    ),
    "service.linger": Meaning(
        means="A person's own service starts at the first login only, and ends with the last one.",
        remedy="sudo loginctl enable-linger USER",
    ),
}

_PROGRAM = re.compile(r'^ExecStart=("[^"]+"|\S+)', re.MULTILINE)
_VERSION = re.compile(r"^# Written by vbatch (\S+)\. ", re.MULTILINE)

# What systemd calls the end of a process (systemd.service(5), "$SERVICE_RESULT").
_RESULTS = {
    "exit-code": "it exited with {status}",
    "signal": "it was ended by a signal",
    "core-dump": "it crashed",
    "watchdog": "it made no progress, and the watchdog ended it",
    "timeout": "it took too long to start or to stop",
    "oom-kill": "the kernel ended it for want of memory",
    "resources": "systemd could not start it",
}


def _unit(_facts: Facts) -> Iterator[Finding]:
    """Look at the unit file of each scope."""
    seen = False
    for scope in Scope:
        where = places(scope)
        if where.unit.exists():
            seen = True
            yield from _of_file(scope, where)
    if not seen:
        yield info(
            "service.none",
            "vbatch is not installed as a service",
            "a worker runs while somebody runs one",
            commands=("vbatch install-service",),
        )


def _of_file(scope: Scope, where: Places) -> Iterator[Finding]:
    text = where.unit.read_text()
    program, version = _program(text), _VERSION.search(text)
    install = f"vbatch install-service --{scope}"
    if program is not None and not Path(program).exists():
        yield Finding(
            id="service.broken",
            level=Level.FAIL,
            what=f"the service starts {program}, which is not there any more",
            why="its environment was moved or deleted",
            commands=(install,),
        )
    elif version is None or version[1] != __version__:
        yield Finding(
            id="service.outdated",
            level=Level.WARN,
            what=f"the unit was written by vbatch {version[1] if version else 'of unknown version'}; "
            f"this is {__version__}",
            commands=(install,),
        )
    if not seal.intact(text):
        yield info("service.edited", f"{where.unit} was changed by hand", "it is kept as it is at updates")
    if not any((where.units / f"{where.target}.wants").glob(instance("*"))):
        yield Finding(
            id="service.disabled",
            level=Level.WARN,
            what=f"the {scope} service is installed, but does not start at boot",
            commands=(install,),
        )
    user = _user()
    if scope is Scope.USER and os.geteuid() != 0 and user and not Systemd(scope).lingers(user):
        yield Finding(
            id="service.linger",
            level=Level.WARN,
            what=f"the service of {user} starts at the first login, not at boot",
            why="systemd starts a person's services without a login only for those who linger",
            commands=(f"sudo loginctl enable-linger {user}",),
        )


def _user() -> str | None:
    with suppress(KeyError, OSError):  # one without an entry in passwd
        return getpass.getuser()
    return None


def _program(unit: str) -> str | None:
    """Return what the unit starts, without quotes, prefixes and doubled percent signs (systemd.service(5))."""
    found = _PROGRAM.search(unit)
    return found[1].strip('"').lstrip("-:+@!").replace("%%", "%") if found else None


def brings_a_worker() -> Finding | None:
    """Return how an installed service is that brings a worker, or would; None where there is none."""
    telling = ("service.running", "service.failed", "service.stopped")
    return next((finding for finding in state() if finding.id in telling), None)


def state(_facts: Facts | None = None) -> Iterator[Finding]:
    """Ask systemd how each instance is."""
    installed = [scope for scope in Scope if places(scope).unit.exists()]
    if not installed:
        yield skip("service.none", "no service to look at")
    for scope in installed:
        try:
            require_running(scope)
            yield from _instances(Systemd(scope), places(scope))
        except (NoSystemd, SystemdRefused) as error:
            yield skip("service.no_systemd", f"the {scope} service cannot be asked for: {error.message}")


def _instances(systemd: Systemd, where: Places) -> Iterator[Finding]:
    enabled = systemd.enabled_instances(where.units, where.target)
    for unit in dict.fromkeys([*enabled, *systemd.units(instance("*"))]):
        yield _of_instance(systemd, unit)


def _of_instance(systemd: Systemd, unit: str) -> Finding:
    seen = systemd.show(
        unit,
        "ActiveState",
        "SubState",
        "Result",
        "ExecMainStatus",
        "ExecMainPID",
        "NRestarts",
        "StatusText",
        "Job",
    )
    short = unit.removesuffix(".service")
    match seen["ActiveState"], seen["SubState"]:
        case ("failed", _) | (_, "auto-restart"):
            return _failed(systemd, unit, seen)
        case ("active" | "activating" | "reloading", _):
            restarts = f", restarted {seen['NRestarts']} times" if seen.get("NRestarts", "0") != "0" else ""
            return ok(
                "service.running",
                f"{short} is {seen['ActiveState']}{restarts}: {seen['StatusText'] or 'starting'}",
            )
        case _ if seen.get("Job", "") not in ("", "0"):
            return ok("service.running", f"{short} is about to be started")
        case _:
            started = seen.get("ExecMainPID", "0") != "0"
            return info(
                "service.stopped",
                f"{short} is stopped" if started else f"{short} was not started since the boot",
                "somebody stopped it; it starts again at the next boot"
                if started
                else f"systemctl{systemd.flag} status {short} tells why, if it is to start at boot",
                commands=(f"systemctl{systemd.flag} start {short}",),
            )


def _failed(systemd: Systemd, unit: str, seen: dict[str, str]) -> Finding:
    """Repeat the worker's own last words; where it left none, what systemd knows."""
    said = systemd.last_words(unit)
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in said if line.startswith("hint: ")]
    reason = _RESULTS.get(seen["Result"], seen["Result"]).format(status=seen["ExecMainStatus"])
    if seen["Result"] == "exit-code" and seen["ExecMainStatus"] == "0":
        absent = [line for line in said if line.endswith("is not a mountpoint")]
        reason = absent[-1] if absent else "a step before its start failed"
    short = unit.removesuffix(".service")
    again = seen["ActiveState"] != "failed"
    return Finding(
        id="service.failed",
        level=Level.WARN if again else Level.FAIL,
        what=f"{short} {'is between two tries' if again else 'failed'}: {errors[-1] if errors else reason}",
        why="it is started again by itself" if again else "it is not started again before this is mended",
        evidence=tuple(said[-5:]),
        commands=(
            *(hints[-1:] if errors else ()),
            f"journalctl{systemd.flag} -u {short} -b",
            *(() if again else (f"systemctl{systemd.flag} restart {short}",)),
        ),
    )


CHECKS = (
    Check(name="service.unit", group=Group.SERVICE, run=_unit),
    Check(name="service.state", group=Group.SERVICE, run=state),
)
