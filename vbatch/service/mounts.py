"""The disks that the service's folders are on, as they are mounted now."""

from __future__ import annotations

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from vbatch.system import disks
from vbatch.system.systemd import Systemd


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mount point, and the name that systemd has for it."""

    point: str
    unit: str


def of(folders: Iterable[str], systemd: Systemd) -> tuple[Mount, ...]:
    """Return the mounts that these folders are on, but for the root's."""
    points = dict.fromkeys(disks.mount_of(Path(folder)).place for folder in folders)
    return tuple(
        Mount(point=str(point), unit=systemd.mount_unit(point)) for point in points if point != Path("/")
    )


def check() -> str:
    """Return the program (of util-linux) that says whether a folder is a mount point."""
    return shutil.which("mountpoint") or "/usr/bin/mountpoint"
