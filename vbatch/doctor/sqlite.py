"""How a SQLite file is: who may read it, where it lies, whether it is whole."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from vbatch.doctor.catalogue import Meaning
from vbatch.doctor.disks import mount_of
from vbatch.doctor.findings import Finding, Level, ok
from vbatch.errors import ExitCode
from vbatch.store import examination

QUICKLY_READ = 4 << 30  # bytes; a file up to this size is read whole, every page of it

MEANINGS = {
    "store.damaged": Meaning(
        means="The SQLite file is damaged: its own check finds pages that do not fit together.",
        remedy="Keep a copy; sqlite3 vbatch.db .recover > saved.sql gets out what can be read.",
    ),
    "store.journal_mode": Meaning(
        means="The file is in WAL mode, in which this SQLite can damage it when several processes write "
        "(sqlite.org/wal.html, the WAL-reset bug).",
        remedy="sqlite3 vbatch.db 'PRAGMA journal_mode=DELETE', with no vbatch running.",
    ),
    "store.network_file_system": Meaning(
        means="The SQLite file lies on a network file system, whose locks cannot be relied on.",
        remedy="Move it to a local disk (VBATCH_DATA_DIR), or use PostgreSQL.",
    ),
    "store.permissions": Meaning(
        means="Others may read the SQLite file, and with it every prompt.", remedy="chmod 600 vbatch.db"
    ),
}


def look(path: Path) -> Iterator[Finding]:
    """Look at a SQLite file: who may read it, where it lies, whether it is whole."""
    fine = True
    for finding in (*_place(path), *_state(path)):
        fine = False
        yield finding
    if fine:
        yield ok("store.durability", "a saved result survives a power cut; the file is whole")


def _place(path: Path) -> Iterator[Finding]:
    mount = mount_of(path)
    if mount.over_network:
        yield Finding(
            id="store.network_file_system",
            level=Level.WARN,
            what=f"{path} lies on {mount.kind}, a network file system",
            why="two processes may write at once there, which damages the file",
            commands=("VBATCH_DATA_DIR=/a/local/folder",),
        )
    if path.stat().st_mode & 0o077:
        yield Finding(
            id="store.permissions",
            level=Level.WARN,
            what=f"others may read {path}",
            why="it holds every prompt and answer",
            commands=(f"chmod 600 {path}",),
        )
    if not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK) or mount.read_only:
        yield Finding(
            id="store.read_only",
            level=Level.FAIL,
            what=f"{path} or its folder cannot be written",
            why="the file system is mounted read-only"
            if mount.read_only
            else "its permissions do not allow it",
            commands=(f"ls -l {path}; ls -ld {path.parent}",),
            exit_code=ExitCode.MISCONFIGURED,
        )


def _state(path: Path) -> Iterator[Finding]:
    seen = examination.file(path, check=path.stat().st_size <= QUICKLY_READ)
    if seen.damage is not None:
        yield Finding(
            id="store.damaged",
            level=Level.FAIL,
            what=f"{path} is damaged",
            why="what is in the damaged pages may be lost",
            evidence=(seen.damage,),
            commands=(f"cp {path} {path}.damaged && sqlite3 {path} .recover > saved.sql",),
            exit_code=ExitCode.MISCONFIGURED,
        )
    if seen.journal_mode == "wal" and not seen.wal_is_safe:
        yield Finding(
            id="store.journal_mode",
            level=Level.WARN,
            what=f"{path} is in WAL mode, which SQLite {seen.version} can damage",
            why="several processes write to it; vbatch itself uses journal_mode=DELETE on this SQLite",
            commands=(f"sqlite3 {path} 'PRAGMA journal_mode=DELETE'",),
        )
