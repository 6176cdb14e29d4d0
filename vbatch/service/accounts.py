"""Whose account the service runs in."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from vbatch.errors import UsageError

# systemd's state directory of the service: the home of an account that has none of its own.
STATE_HOME = Path("/var/lib/vbatch")


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user of this machine. ``has_home`` is false for accounts made for a service, which own no folder."""

    name: str
    uid: int
    gid: int
    home: str
    has_home: bool

    @property
    def service_home(self) -> str:
        """The home that the machine's service gives this account: its store and its caches are below it."""
        return self.home if self.has_home else str(STATE_HOME)


def account(name: str | None = None) -> Account:
    """Return the account of that name; by default the person's who called sudo or pkexec, else the caller's own.

    Root installs the service, but the queue, the models and the files belong to the person.
    """
    if name is None and os.geteuid() == 0:
        name = os.environ.get("SUDO_USER") or _name_of(os.environ.get("PKEXEC_UID"))
    try:
        entry = pwd.getpwnam(name) if name is not None else pwd.getpwuid(os.geteuid())
    except KeyError:
        raise UsageError(f"there is no user {name}", hint="getent passwd") from None
    home = Path(entry.pw_dir)
    return Account(
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        home=entry.pw_dir,
        # Whether STATE_HOME exists is the service's own doing: the next install must not decide by it.
        has_home=home != STATE_HOME and _owns(home, entry.pw_uid),
    )


def _name_of(uid: str | None) -> str | None:
    try:
        return pwd.getpwuid(int(uid)).pw_name if uid and uid.isdigit() else None
    except KeyError:
        return None


def _owns(folder: Path, uid: int) -> bool:
    try:
        return folder.is_dir() and folder.stat().st_uid == uid
    except OSError:
        return False
