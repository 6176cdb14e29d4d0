"""How a SQLite file is: who may read it, where it lies, whether it is whole."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

from vbatch import disks
from vbatch.doctor.catalogue import Meaning
from vbatch.doctor.findings import Finding, Level, info, ok
from vbatch.errors import ExitCode
from vbatch.store.database.backends.sqlite import examine, in_unsafe_wal_mode, kept_in_wal_mode

LONGEST_READ = timedelta(seconds=10)  # a worker must wait with its results while the file is read

MEANINGS = {
    "store.damaged": Meaning(
        means="The SQLite file is damaged: its own check finds pages that do not fit together.",
        remedy="Keep a copy; sqlite3 vbatch.db .recover > saved.sql gets out what can be read.",
    ),
    "store.journal_mode": Meaning(
        means="Another program left the file in WAL mode, in which this SQLite can damage it when several "
        "processes write (sqlite.org/wal.html, the WAL-reset bug).",
        remedy="Close that program: vbatch sets the mode to DELETE when nobody else has the file open.",
    ),
    "store.network_file_system": Meaning(
        means="The SQLite file lies on a network file system, whose locks cannot be relied on.",
        remedy="Move it to a local disk (VBATCH_DATA_DIR), or use PostgreSQL.",
    ),
    "store.permissions": Meaning(
        means="Others may read the SQLite file, and with it every prompt.", remedy="chmod 600 vbatch.db"
    ),
}


def unopened(path: Path) -> Iterator[Finding]:
    """Look at what a connection of ours would change or hide: whether the file can be made, and its mode."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        yield _cannot_open(path.parent, f"{path.parent} cannot be entered: {error.strerror}")
        return
    if disks.exists(path):
        if in_unsafe_wal_mode(path):
            yield Finding(
                id="store.journal_mode",
                level=Level.WARN,
                what=f"{path} was left in WAL mode, which this SQLite can damage",
                why="vbatch sets journal_mode=DELETE as soon as no other program has it open",
                commands=(shlex.join(["fuser", "-v", str(path)]),),
            )
            if kept_in_wal_mode(path):
                yield Finding(
                    id="store.locked",
                    level=Level.FAIL,
                    what=f"another program keeps {path} in WAL mode",
                    why="a worker waits until that program closes it",
                    commands=(shlex.join(["fuser", "-v", str(path)]),),
                    passing=True,
                    exit_code=ExitCode.STORE_UNREACHABLE,
                )
        return
    if path.is_symlink():
        yield _cannot_open(
            path, f"it is a link to {path.readlink()}, which is not there; is its disk mounted?"
        )
        return
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir():
        yield _cannot_open(folder, f"{folder} is not a folder")
    elif disks.mount_of(folder).read_only:
        yield _read_only(path, folder, "the file system is mounted read-only")
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield _cannot_open(folder, f"{folder} may not be written")


def look(path: Path) -> Iterator[Finding]:
    """Look at a SQLite file: who may read it, where it lies, whether it is whole."""
    fine = True
    for finding in (*_place(path), *_state(path)):
        fine = False
        yield finding
    if fine:
        yield ok("store.durability", "a saved result survives a power cut; the file is whole")


def _place(path: Path) -> Iterator[Finding]:
    mount = disks.mount_of(path)
    if mount.over_network:
        yield Finding(
            id="store.network_file_system",
            level=Level.WARN,
            what=f"{path} lies on {mount.kind}, a network file system",
            why="two processes may write at once there, which damages the file",
            commands=(shlex.join(["df", "-hT", str(path)]), "export VBATCH_DATA_DIR=/var/tmp/vbatch"),
        )
    if path.stat().st_mode & 0o077:
        yield Finding(
            id="store.permissions",
            level=Level.WARN,
            what=f"others may read {path}",
            why="it holds every prompt and answer",
            commands=(shlex.join(["chmod", "600", str(path)]),),
        )
    if mount.read_only:
        yield _read_only(path, path.parent, "the file system is mounted read-only")
    elif not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        yield _read_only(path, path.parent, "its permissions do not allow it")


def _state(path: Path) -> Iterator[Finding]:
    seen = examine(path, limit=LONGEST_READ)
    if seen.damage is not None:
        yield Finding(
            id="store.damaged",
            level=Level.FAIL,
            what=f"{path} is damaged",
            why="what is in the damaged pages may be lost",
            evidence=(seen.damage,),
            commands=(rescue(path),),
            exit_code=ExitCode.MISCONFIGURED,
        )
    elif not seen.read_whole:
        yield info(
            "store.durability",
            "a saved result survives a power cut",
            f"the file is large: its pages were not all read within {LONGEST_READ.total_seconds():g} s",
            commands=(shlex.join(["sqlite3", str(path), "PRAGMA quick_check"]),),
        )


def rescue(path: Path) -> str:
    """Return the command that keeps a damaged file and gets out of it what can be read."""
    copy = shlex.quote(f"{path}.damaged")
    return f"cp {shlex.quote(str(path))} {copy} && sqlite3 {copy} .recover > saved.sql"


def _cannot_open(place: Path, why: str) -> Finding:
    return Finding(
        id="store.cannot_open",
        level=Level.FAIL,
        what="the store cannot be made where it is configured to be",
        why=why,
        commands=(shlex.join(["ls", "-ld", str(place)]),),
        exit_code=ExitCode.MISCONFIGURED,
    )


def _read_only(path: Path, folder: Path, why: str) -> Finding:
    return Finding(
        id="store.read_only",
        level=Level.FAIL,
        what=f"{path} or its folder cannot be written",
        why=why,
        commands=(shlex.join(["ls", "-ld", str(path), str(folder)]),),
        exit_code=ExitCode.MISCONFIGURED,
    )
