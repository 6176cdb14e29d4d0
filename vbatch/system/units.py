"""vbatch's own units: whose systemd runs them, where their files are, and whether they are as vbatch wrote them."""

from __future__ import annotations

import hashlib
import os
import shlex
import sys
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

UNIT = "vbatch-worker"
TEMPLATE = f"{UNIT}@.service"
SERVER = "vbatch-serve"
SERVER_UNIT = f"{SERVER}.service"
ENVIRONMENT_FILE = "worker.env"

_MARK = "# vbatch install-service sha256:"


class Scope(StrEnum):
    """Whose systemd runs the service."""

    SYSTEM = "system"  # the machine's: starts at boot, sandboxed, needs root to install
    USER = "user"  # a person's own: starts at boot with linger, needs no root


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The files of a service in one scope."""

    units: Path
    settings: Path
    target: str

    @property
    def unit(self) -> Path:
        """The unit file: a template, one instance per GPU."""
        return self.units / TEMPLATE

    @property
    def server(self) -> Path:
        """The unit file of the server, where there is one: no template."""
        return self.units / SERVER_UNIT

    @property
    def wants(self) -> Path:
        """Where the links are of the instances that start with the target."""
        return self.units / f"{self.target}.wants"

    @property
    def drop_ins(self) -> Path:
        """Where ``systemctl edit`` keeps a person's changes."""
        return self.units / f"{TEMPLATE}.d"

    @property
    def server_drop_ins(self) -> Path:
        """The same of the server."""
        return self.units / f"{SERVER_UNIT}.d"

    @property
    def environment(self) -> Path:
        """The file that holds what may be secret: mode 0600, never in the unit."""
        return self.settings / ENVIRONMENT_FILE


def places(scope: Scope) -> Places:
    """Return where this scope's files are: systemd.unit(5), "unit file load path"."""
    if scope is Scope.SYSTEM:
        return Places(
            units=Path("/etc/systemd/system"), settings=Path("/etc/vbatch"), target="multi-user.target"
        )
    configuration = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    return Places(
        units=configuration / "systemd/user", settings=configuration / "vbatch", target="default.target"
    )


def instance(name: int | str) -> str:
    """Return the unit's name for one GPU."""
    return f"{UNIT}@{name}.service"


def seal(body: str) -> str:
    """Put the checksum of the body in front of it."""
    return f"{_MARK}{_digest(body)}\n{body}"


def intact(text: str) -> bool:
    """Whether the text was sealed and has not been changed since."""
    first, _, body = text.partition("\n")
    return first == _MARK + _digest(body)


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()


def own_command(*arguments: str) -> str:
    """Return the command line of this vbatch by its own path: sudo and cron do not know a virtual environment."""
    script = Path(sys.executable).with_name("vbatch")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "vbatch"]
    return shlex.join([*program, *arguments])


def scoped_command(scope: Scope, *arguments: str) -> str:
    """Return the command line for a user who may change this scope."""
    if scope is Scope.USER:
        return shlex.join(["vbatch", *arguments, "--user"])
    return f"sudo {own_command(*arguments, '--system')}"
