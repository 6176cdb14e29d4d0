"""Who else can write or read the configuration file: its commands run with rights, its keys open the server.

Its endpoints get the keys that it names.
"""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from vbatch.errors import ConfigError


def check(path: Path, status: os.stat_result, found: Mapping[str, Any]) -> None:
    """Refuse a file whose commands another user can change, or whose keys others can read. Raises ConfigError."""
    if "notify" in found or "endpoints" in found:
        require_own(path, status)
    served = found.get("serve")
    if isinstance(served, dict) and served.get("api_keys") and stat.S_IMODE(status.st_mode) & 0o077:
        raise ConfigError(f"{path} has api_keys, and other users can read it", hint=f"chmod 600 {path}")


def require_own(path: Path, status: os.stat_result) -> None:
    """Refuse a file with commands or endpoints that another user, but root, can change. Raises ConfigError."""
    if (stranger := _stranger(status)) is not None:
        raise ConfigError(
            f"{path} has commands to run or servers to use, and another user can change them: {stranger}",
            hint=f"sudo chown $(id -un) {path} && chmod go-w {path}",
        )


def _stranger(status: os.stat_result) -> str | None:
    """Return in words who can write a file, next to root and this user; None where no other user can."""
    if status.st_uid not in (0, os.geteuid()):
        return f"it belongs to {_user(status.st_uid)}"
    if status.st_mode & stat.S_IWOTH:
        return "everyone can write it"
    if status.st_mode & stat.S_IWGRP and not _is_of_one_user(status.st_gid, status.st_uid):
        return "its group can write it"
    return None


def _is_of_one_user(gid: int, uid: int) -> bool:
    """Whether a group is one user's own, as distributions make one per user: it has their name, and no other member."""
    with suppress(KeyError):
        user, group = pwd.getpwuid(uid), grp.getgrgid(gid)
        return user.pw_gid == gid and user.pw_name == group.gr_name and set(group.gr_mem) <= {user.pw_name}
    return False


def _user(uid: int) -> str:
    with suppress(KeyError):
        return pwd.getpwuid(uid).pw_name
    return f"user {uid}"
