"""The one door to systemd: systemctl, systemd-analyze and loginctl, in either scope. It decides nothing."""

from __future__ import annotations

import os
import pwd
import re
import subprocess
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from vbatch.errors import VbatchError
from vbatch.system.units import SERVER, TEMPLATE, UNIT, Scope, instance, own_command
from vbatch.text import harmless

BOOTED = Path("/run/systemd/system")  # exists exactly where systemd is PID 1: sd_booted(3)
PATIENCE = timedelta(seconds=60)
STRICT_VERIFY = 250  # systemd-analyze verify --recursive-errors=
ASSUMED_VERSION = 252  # of a systemd that cannot be asked: what Debian 12 has

_VERSION = re.compile(r"systemd (\d+)")
_EXPOSURE = re.compile(r"Overall exposure level for \S+: ([\d.]+)")


class NoSystemd(VbatchError):
    """This machine is not run by systemd."""

    code = "no_systemd"


class SystemdRefused(VbatchError):
    """systemd did not do what it was asked to do."""

    code = "systemd_refused"


class UnitInvalid(VbatchError):
    """systemd-analyze does not accept the unit; nothing was written."""

    code = "unit_invalid"


def environment() -> dict[str, str]:
    """Return this environment in the C locale, with the user's bus where a login did not set it (su, cron)."""
    environment = os.environ | {"LC_ALL": "C.UTF-8", "SYSTEMD_COLORS": "0", "SYSTEMD_PAGER": ""}
    environment.setdefault("XDG_RUNTIME_DIR", f"/run/user/{os.geteuid()}")
    return environment


@dataclass(frozen=True, slots=True)
class Systemd:
    """systemd in one scope. Every call that systemd refuses raises SystemdRefused with what it said."""

    scope: Scope
    _environment: Mapping[str, str] = field(default_factory=environment)

    def version(self) -> int:
        """Return its version, such as 252. Raises NoSystemd where it is not installed."""
        found = _VERSION.match(self._run("systemctl", "--version").stdout)
        if found is None:
            raise NoSystemd("systemctl --version does not say which systemd this is")
        return int(found[1])

    def systemctl(self, *arguments: str) -> str:
        """Run systemctl and return what it printed."""
        return self._order("systemctl", *self._scoped, *arguments)

    def show(self, unit: str, *properties: str) -> dict[str, str]:
        """Return properties of a unit, also of one that does not exist (LoadState=not-found)."""
        text = self.systemctl("show", unit, "--property", ",".join(properties))
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def unit_files(self, pattern: str) -> dict[str, str]:
        """Return the installed unit files that match, with their state (enabled, disabled, …)."""
        return _table(self.systemctl("list-unit-files", "--no-legend", "--no-pager", pattern))

    def units(self, pattern: str) -> list[str]:
        """Return the units that systemd has loaded and that match, such as the instances of a template."""
        listed = self.systemctl("list-units", "--all", "--plain", "--no-legend", "--no-pager", pattern)
        return [line.split()[0] for line in listed.splitlines() if line.split()]

    def enabled_instances(self, folder: Path, target: str) -> list[str]:
        """Return the instances of vbatch's template that start with this target."""
        links = (folder / f"{target}.wants").glob(instance("*"))
        return sorted(link.name for link in links if link.is_symlink())

    def last_words(self, unit: str, *, lines: int = 30) -> list[str]:
        """Return the last lines of the unit's latest main process, without those of its pre and post commands.

        Where no main process ran since the boot, they are those of the commands before it.
        """
        main = self.show(unit, "ExecMainPID").get("ExecMainPID", "0")
        process = () if main == "0" else (f"_PID={main}",)
        matching = ("--unit" if self.scope is Scope.SYSTEM else "--user-unit", unit, *process)
        done = self._run("journalctl", *matching, "--boot", "-o", "cat", "-n", str(lines), "--no-pager")
        return done.stdout.splitlines()

    def mount_unit(self, point: Path) -> str:
        """Return the name of the unit that systemd has for a mount point."""
        return self._order("systemd-escape", "--path", "--suffix=mount", str(point)).strip()

    def verify(self, text: str, *, name: str = f"{UNIT}-new@.service") -> None:
        """Let systemd-analyze read the unit as strictly as it can. Raises UnitInvalid with its complaints.

        It is read under a name of its own, which no drop-in of a user is for.
        """
        if complaints := self.complaints(text, name=name):
            raise UnitInvalid(
                "systemd-analyze verify does not accept the unit: " + "\n".join(complaints),
                hint="systemctl --version   # and report it with the lines above",
            )

    def complaints(self, text: str, *, name: str = TEMPLATE) -> tuple[str, ...]:
        """Return what systemd-analyze says against the unit of this name, with the drop-ins that it has."""
        strict = ("--recursive-errors=no",) if self.version() >= STRICT_VERIFY else ()
        with tempfile.TemporaryDirectory(prefix="vbatch-unit-") as folder:
            unit = Path(folder) / name
            unit.write_text(text)
            done = self._run("systemd-analyze", *self._scoped, "verify", "--man=no", *strict, str(unit))
        said = [harmless(line) for line in done.stderr.splitlines()]
        of_unit = tuple(line for line in said if UNIT in line or SERVER in line)
        return of_unit or (tuple(said) or (f"exit {done.returncode}",) if done.returncode != 0 else ())

    def exposure(self, text: str, *, name: str = instance(0)) -> float:
        """Return the unit's exposure by systemd-analyze security: 0 (sealed) to 10 (open)."""
        with tempfile.TemporaryDirectory(prefix="vbatch-unit-") as folder:
            unit = Path(folder) / name
            unit.write_text(text)
            report = self._order(
                "systemd-analyze", *self._scoped, "security", "--offline=yes", "--no-pager", str(unit)
            )
        found = _EXPOSURE.search(report)
        if found is None:
            raise SystemdRefused("systemd-analyze security gave no overall exposure level")
        return float(found[1])

    def lingers(self, user: str) -> bool:
        """Whether the user's systemd starts at boot, without a login (loginctl(1))."""
        return (Path("/var/lib/systemd/linger") / user).exists()

    def linger(self, user: str, *, on: bool) -> None:
        """Have the user's systemd start at boot, or no longer."""
        self._order("loginctl", "enable-linger" if on else "disable-linger", user)

    @property
    def flag(self) -> str:
        """What a person adds to systemctl or journalctl, with the space before it."""
        return " --user" if self.scope is Scope.USER else ""

    @property
    def _scoped(self) -> tuple[str, ...]:
        return ("--user",) if self.scope is Scope.USER else ()

    def _order(self, *command: str) -> str:
        done = self._run(*command)
        if done.returncode != 0:
            said = harmless((done.stderr or done.stdout).strip(), keep="\n")
            raise SystemdRefused(f"{' '.join(command)}: {said or f'exit {done.returncode}'}")
        return done.stdout

    def _run(self, *command: str) -> subprocess.CompletedProcess[str]:
        try:
            return subprocess.run(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=PATIENCE.total_seconds(),
                check=False,
            )
        except FileNotFoundError:
            raise NoSystemd(f"{command[0]} is not installed") from None
        except subprocess.TimeoutExpired:
            limit = PATIENCE.total_seconds()
            raise SystemdRefused(f"{' '.join(command)}: no answer within {limit:g} s") from None


class AbsentSystemd(Systemd):
    """In place of a systemd that does not run here: what can be known of a unit without it, for a dry run."""

    def version(self) -> int:
        """Return the oldest version that a unit of vbatch is written for."""
        return ASSUMED_VERSION

    def mount_unit(self, point: Path) -> str:
        """Return the name by systemd's rule (systemd.unit(5), "String Escaping")."""
        parts = "-".join(_escaped(part) for part in str(point).strip("/").split("/"))
        return f"{parts or '-'}.mount"

    def verify(self, text: str, *, name: str = "") -> None:
        """Accept it: there is no systemd-analyze to ask."""

    def complaints(self, text: str, *, name: str = TEMPLATE) -> tuple[str, ...]:  # noqa: ARG002
        """Return none."""
        return ()

    def enabled_instances(self, folder: Path, target: str) -> list[str]:  # noqa: ARG002
        """Return none: nothing is enabled where nothing runs."""
        return []

    def lingers(self, user: str) -> bool:  # noqa: ARG002
        """Leave it out of the plan."""
        return True


def _escaped(part: str) -> str:
    kept = "".join(
        character if re.fullmatch(r"[A-Za-z0-9:_.]", character) else f"\\x{ord(character):02x}"
        for character in part
    )
    return "\\x2e" + kept[1:] if kept.startswith(".") else kept


def require_running(scope: Scope) -> None:
    """Raise NoSystemd, with what to do instead, where systemd does not run this machine or this user."""
    if not BOOTED.is_dir():
        raise _no_systemd()
    if scope is Scope.USER and not Path(environment().get("XDG_RUNTIME_DIR", ""), "systemd").is_dir():
        user = pwd.getpwuid(os.geteuid()).pw_name
        raise NoSystemd(
            f"the systemd of user {user} does not run: no login started it (su and sudo do not)",
            hint=f"sudo loginctl enable-linger {user}   # then try again",
        )


def _no_systemd() -> NoSystemd:
    """Say what runs this machine instead, and what to do there."""
    worker = own_command("run-worker")
    if "microsoft" in Path("/proc/sys/kernel/osrelease").read_text().lower():
        return NoSystemd(
            "this is WSL without systemd",
            hint="put `[boot]` and `systemd=true` on two lines of /etc/wsl.conf, "
            "run `wsl --shutdown` in Windows, then try again",
        )
    if any(Path(mark).exists() for mark in ("/.dockerenv", "/run/.containerenv")):
        return NoSystemd(
            "this is a container without systemd",
            hint=f"make `{worker}` the container's command, and start it with --restart unless-stopped",
        )
    init = Path("/proc/1/comm").read_text().strip()
    return NoSystemd(
        f"this machine is not run by systemd but by {harmless(init)}",
        hint=f"have its own service manager keep `{worker}` running; cron can start it: @reboot {worker}",
    )


def _table(text: str) -> dict[str, str]:
    rows = (line.split() for line in text.splitlines())
    return {row[0]: row[1] for row in rows if len(row) >= 2}
