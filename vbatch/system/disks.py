"""Which file system a path is on, and how much room is there, from /proc and statvfs alone."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import platformdirs

_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"})
_NETWORK_FUSE = frozenset({"sshfs", "rclone", "s3fs", "glusterfs", "ceph", "davfs2"})  # fuse.NAME
_ESCAPED = re.compile(r"\\([0-7]{3})")  # blanks are written as \040 (proc_pid_mountinfo(5))


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A file system as it is mounted. ``free`` and ``total`` are in bytes, ``free`` for users other than root."""

    place: Path
    kind: str
    read_only: bool
    free: int
    total: int

    @property
    def over_network(self) -> bool:
        """Whether another machine keeps it."""
        return self.kind in _NETWORK or self.kind.removeprefix("fuse.") in _NETWORK_FUSE


def exists(path: str | Path) -> bool:
    """Whether a path leads to something. What cannot be looked at does not: a closed folder, an unreachable server.

    ``Path.exists`` raises there (before Python 3.14).
    """
    return os.path.exists(path)  # noqa: PTH110


def hub_cache() -> Path:
    """Return where huggingface_hub keeps models (its HF_HUB_CACHE and HF_HOME)."""
    user = os.environ.get("XDG_CACHE_HOME") or platformdirs.user_cache_dir()
    home = Path(os.environ.get("HF_HOME") or f"{user}/huggingface")
    return Path(os.environ.get("HF_HUB_CACHE") or home / "hub")


def mount_of(path: Path) -> Mount:
    """Return where a path lies, or will lie once its folders exist. Raises OSError."""
    existing = next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.exists())
    real = existing.resolve()
    place, kind, flags = max(
        (entry for entry in _mounts() if real == entry[0] or entry[0] in real.parents),
        key=lambda entry: len(entry[0].parts),
    )
    room = os.statvfs(real)
    return Mount(
        place=place,
        kind=kind,
        read_only="ro" in flags or bool(room.f_flag & os.ST_RDONLY),
        free=room.f_bavail * room.f_frsize,
        total=room.f_blocks * room.f_frsize,
    )


def _mounts() -> list[tuple[Path, str, list[str]]]:
    """Read what is mounted where, the newest last (proc_pid_mountinfo(5))."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").split("\n")[:-1]:
        before, _, after = line.partition(" - ")
        fields = before.split()
        place = _ESCAPED.sub(lambda code: chr(int(code[1], 8)), fields[4])
        found.append((Path(place), after.split()[0], fields[5].split(",")))
    return found[::-1]
