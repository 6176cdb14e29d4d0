"""Checks of the service: installed, enabled, current, and if it failed, why, by its own last words."""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vbatch import __version__
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Check, Entry, Finding, Level
from vbatch.system.systemd import NoSystemd, Systemd, SystemdRefused, require_running
from vbatch.system.units import Places, Scope, instance, intact, places

_INSTALL = ("vbatch install-service --{scope}",)

NONE = Entry(
    id="service.none",
    means="vbatch is not installed as a service: a worker runs only while a person runs one",
    commands=("vbatch install-service",),
)
NO_SYSTEMD = Entry(
    id="service.no_systemd",
    means="systemd does not run this machine, or not for this user",
    advice="vbatch install-service shows what to do instead",
)
RUNNING = Entry(id="service.running", means="the service runs, and its status shows what it does")
DISABLED = Entry(
    id="service.disabled",
    means="the unit is installed, but nothing starts it at boot",
    commands=_INSTALL,
)
OUTDATED = Entry(
    id="service.outdated",
    means="another version of vbatch wrote the unit; installing it again updates it",
    commands=_INSTALL,
)
BROKEN = Entry(
    id="service.broken",
    means="the environment that the unit starts Python from was moved or deleted",
    commands=_INSTALL,
    advice="from the environment that is to be used",
)
EDITED = Entry(
    id="service.edited",
    means="the unit was changed by hand; updates keep it as it is",
    advice="systemctl edit keeps changes apart, so that updates do not affect them",
)
FAILED = Entry(
    id="service.failed",
    means="the service ended and is not started again before its problem is fixed, or is between two tries",
    commands=("journalctl -u vbatch-worker@0 -b",),
    advice="fix what its last words name, then restart it",
)
STOPPED = Entry(
    id="service.stopped",
    means="the service was stopped, or not started since the boot; it starts again at the next boot",
    commands=("systemctl start vbatch-worker@0",),
)
LINGER = Entry(
    id="service.linger",
    means="systemd starts a user's services at the first login and ends them with the last, unless the user lingers",
    commands=("sudo loginctl enable-linger {user}",),
)

_PROGRAM = re.compile(r'^ExecStart=("[^"]+"|\S+)', re.MULTILINE)
_VERSION = re.compile(r"^# Written by vbatch (\S+)\. ", re.MULTILINE)

# What systemd calls the end of a process (systemd.service(5), "$SERVICE_RESULT").
_RESULTS = {
    "exit-code": "it exited with {status}",
    "signal": "it was ended by a signal",
    "core-dump": "it crashed",
    "watchdog": "it made no progress, so the watchdog ended it",
    "timeout": "it took too long to start or to stop",
    "oom-kill": "the kernel ended it because memory ran out",
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
        yield NONE.info("vbatch is not installed as a service")


def _of_file(scope: Scope, where: Places) -> Iterator[Finding]:
    text = where.unit.read_text()
    program, version = _program(text), _VERSION.search(text)
    values = {"scope": scope}
    if program is not None and not Path(program).exists():
        yield BROKEN.fail(f"the service starts {program}, which does not exist", values=values)
    elif version is None or version[1] != __version__:
        writer = version[1] if version else "of unknown version"
        yield OUTDATED.warn(f"vbatch {writer} wrote the unit; this is {__version__}", values=values)
    if not intact(text):
        yield EDITED.info(f"{where.unit} was changed by hand")
    if not any((where.units / f"{where.target}.wants").glob(instance("*"))):
        yield DISABLED.warn(f"the {scope} service is installed, but does not start at boot", values=values)
    user = _user()
    if scope is Scope.USER and os.geteuid() != 0 and user and not Systemd(scope).lingers(user):
        what = f"the service of {user} starts at the first login, not at boot"
        yield LINGER.warn(what, values={"user": user})


def _user() -> str | None:
    with suppress(KeyError, OSError):  # one without an entry in passwd
        return getpass.getuser()
    return None


def _program(unit: str) -> str | None:
    """Return what the unit starts, without quotes, prefixes and doubled percent signs (systemd.service(5))."""
    found = _PROGRAM.search(unit)
    return found[1].strip('"').lstrip("-:+@!").replace("%%", "%") if found else None


def brings_a_worker() -> Finding | None:
    """Return how an installed service is that starts a worker, or would; None where there is none."""
    return next((finding for finding in state() if finding.entry in (RUNNING, FAILED, STOPPED)), None)


def state(_facts: Facts | None = None) -> Iterator[Finding]:
    """Ask systemd how each instance is."""
    installed = [scope for scope in Scope if places(scope).unit.exists()]
    if not installed:
        yield NONE.skip("no service to look at")
    for scope in installed:
        try:
            require_running(scope)
            yield from _instances(Systemd(scope), places(scope))
        except (NoSystemd, SystemdRefused) as error:
            yield NO_SYSTEMD.skip(f"the state of the {scope} service is unknown: {error.message}")


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
            return RUNNING.ok(
                f"{short} is {seen['ActiveState']}{restarts}: {seen['StatusText'] or 'starting'}"
            )
        case _ if seen.get("Job", "") not in ("", "0"):
            return RUNNING.ok(f"{short} is about to be started")
    start = (f"systemctl{systemd.flag} start {short}",)
    if seen.get("ExecMainPID", "0") != "0":
        return STOPPED.info(f"{short} is stopped", commands=start)
    why = f"systemctl{systemd.flag} status {short} shows why, if it is to start at boot"
    return STOPPED.info(f"{short} was not started since the boot", why=why, commands=start)


def _failed(systemd: Systemd, unit: str, seen: dict[str, str]) -> Finding:
    """Repeat the worker's own last words; without any, what systemd knows."""
    said = systemd.last_words(unit)
    errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    hints = [line.removeprefix("hint: ") for line in said if line.startswith("hint: ")]
    reason = _RESULTS.get(seen["Result"], seen["Result"]).format(status=seen["ExecMainStatus"])
    if seen["Result"] == "exit-code" and seen["ExecMainStatus"] == "0":
        absent = [line for line in said if line.endswith("is not a mountpoint")]
        reason = absent[-1] if absent else "a step before its start failed"
    short = unit.removesuffix(".service")
    again = seen["ActiveState"] != "failed"
    return FAILED.found(
        Level.WARN if again else Level.FAIL,
        f"{short} {'is between two tries' if again else 'failed'}: {errors[-1] if errors else reason}",
        why="systemd starts it again" if again else "it is not started again before this is fixed",
        evidence=tuple(said[-5:]),
        commands=(
            *(hints[-1:] if errors else ()),
            f"journalctl{systemd.flag} -u {short} -b",
            *(() if again else (f"systemctl{systemd.flag} restart {short}",)),
        ),
    )


CHECKS = (
    Check(name="service.unit", finds=(NONE, DISABLED, OUTDATED, BROKEN, EDITED, LINGER), run=_unit),
    Check(name="service.state", finds=(RUNNING, NO_SYSTEMD, FAILED, STOPPED, NONE), run=state),
)
