"""Which file system a path is on, and how much room is there, from /proc and statvfs alone."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

import platformdirs

_NETWORK = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "afs", "ceph", "glusterfs", "lustre"})
_NETWORK_FUSE = frozenset({"sshfs", "rclone", "s3fs", "glusterfs", "ceph", "davfs2"})  # fuse.NAME
# emergency_ro: ext4 after an error of its disk, since Linux 6.15; statvfs and access(2) still call it writable.
_READ_ONLY = frozenset({"ro", "emergency_ro"})
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


def is_folder(path: str | Path) -> bool:
    """Whether a path leads to a folder, as ``exists`` does; any text will do for a path."""
    return os.path.isdir(path)  # noqa: PTH112


def hub_cache() -> Path:
    """Return where huggingface_hub keeps models, by its variables, in which it replaces ``~`` and ``$NAME``."""
    user = os.environ.get("XDG_CACHE_HOME") or platformdirs.user_cache_dir()
    home = os.environ.get("HF_HOME") or f"{user}/huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    return Path(os.path.expandvars(cache)).expanduser()


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
        read_only=bool(_READ_ONLY.intersection(flags)) or bool(room.f_flag & os.ST_RDONLY),
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
        kind, *_source, of_disk = after.split(" ")
        found.append((Path(place), kind, [*fields[5].split(","), *of_disk.split(",")]))
    return found[::-1]
