"""Whose account the service runs in."""

from __future__ import annotations

import os
import pwd
from dataclasses import dataclass
from pathlib import Path

from vbatch.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """A user of this machine. ``has_home`` is false for accounts made for a service, which own no folder."""

    name: str
    uid: int
    gid: int
    home: str
    has_home: bool


def account(name: str | None = None) -> Account:
    """Return the account of that name; by default the person's who called sudo or pkexec, else our own.

    Root installs the service, but the queue, the models and the files belong to the person.
    """
    if name is None and os.geteuid() == 0:
        name = os.environ.get("SUDO_USER") or _name_of(os.environ.get("PKEXEC_UID"))
    try:
        entry = pwd.getpwnam(name) if name is not None else pwd.getpwuid(os.geteuid())
    except KeyError:
        raise UsageError(f"there is no user {name}", hint="getent passwd") from None
    return Account(
        name=entry.pw_name,
        uid=entry.pw_uid,
        gid=entry.pw_gid,
        home=entry.pw_dir,
        has_home=_owns(Path(entry.pw_dir), entry.pw_uid),
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
