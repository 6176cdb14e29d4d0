"""How a SQLite file is: who may read it, where it lies, whether it is whole. The checks of the store call this."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path

from vbatch.doctor.findings import Entry, Finding
from vbatch.errors import ExitCode
from vbatch.store.database.backends import copies
from vbatch.store.database.backends.sqlite import examine, in_unsafe_wal_mode, kept_in_wal_mode
from vbatch.system import deleted, disks

LONGEST_READ = timedelta(seconds=10)  # a worker must wait with its results while the file is read

DAMAGED = Entry(
    id="store.damaged",
    means="the SQLite file is damaged; what is in the damaged pages may be lost",
    advice="keep a copy; sqlite3 COPY .recover > saved.sql saves what can be read",
)
LOCKED = Entry(
    id="store.locked",
    means="another program locks the SQLite file for longer than a transaction takes; nothing can be saved meanwhile",
    commands=("fuser -v {path}",),
    advice="close that program: a database browser or a backup does this",
)
READ_ONLY = Entry(
    id="store.read_only",
    means="the store can be read but not written",
    commands=("ls -ld {path} {folder}",),
    advice="of a server: it is a standby, or default_transaction_read_only is on",
)
CANNOT_OPEN = Entry(
    id="store.cannot_open",
    means="the SQLite file or its folder may not be opened, or is not there",
    commands=("ls -ld {place}",),
)
NOT_SQLITE = Entry(
    id="store.not_sqlite", means="the file is not a SQLite database", advice="configure another file"
)
MOVED = Entry(
    id="store.moved",
    means="a store was at this path and is not any more: it was moved or deleted, or its disk is not mounted; the "
    "next command makes an empty one, and a worker that runs waits for the file to come back",
    commands=("ls -la {folder}",),
    advice="move the file back, or put a backup there, before anything else",
)
REPLACED = Entry(
    id="store.replaced",
    means="another file, or older contents, took the place of the store while it was in use; work continues with "
    "what is there now",
    commands=("vbatch list",),
)
FOREIGN_JOURNAL = Entry(
    id="store.foreign_journal",
    means="the journal of an interrupted transaction lies beside a file that it was not made for, a backup perhaps; "
    "SQLite would write its pages into that file, so vbatch does not open it",
    commands=("mv {journal} {journal}.foreign",),
)
FAULTS = (DAMAGED, LOCKED, READ_ONLY, CANNOT_OPEN, NOT_SQLITE, MOVED, REPLACED, FOREIGN_JOURNAL)

JOURNAL_MODE = Entry(
    id="store.journal_mode",
    means="another program left the file in WAL mode, in which this SQLite can damage it (sqlite.org/wal.html, the "
    "WAL-reset bug); vbatch sets journal_mode=DELETE as soon as no other program has it open",
    commands=("fuser -v {path}",),
)
NETWORK_FILE_SYSTEM = Entry(
    id="store.network_file_system",
    means="the locks of a network file system are not reliable: two processes may write at once and damage the file",
    commands=("df -hT {path}", "export VBATCH_DATA_DIR=/var/tmp/vbatch"),
    advice="move the file to a local disk, or use PostgreSQL",
)
PERMISSIONS = Entry(
    id="store.permissions",
    means="other users may read the SQLite file, which holds every prompt and answer",
    commands=("chmod 600 {path}",),
)
DURABILITY = Entry(
    id="store.durability",
    means="whether a saved result survives a power cut: with fsync or full_page_writes off on a server it can be lost, "
    "and the whole database with it",
    advice="ALTER SYSTEM SET fsync = on; ALTER SYSTEM SET full_page_writes = on; then restart the server",
)
FOUND = (DURABILITY, DAMAGED, READ_ONLY, NETWORK_FILE_SYSTEM, PERMISSIONS)


def unopened(path: Path) -> Iterator[Finding]:
    """Look at what opening the file would change or hide: whether it can be made, and its mode."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        pass
    except OSError as error:
        yield _cannot_open(path.parent, f"{path.parent} cannot be entered: {error.strerror}")
        return
    if disks.exists(path):
        if in_unsafe_wal_mode(path):
            yield JOURNAL_MODE.warn(f"{path} was left in WAL mode", values={"path": path})
            if kept_in_wal_mode(path):
                yield LOCKED.fail(
                    f"another program keeps {path} in WAL mode",
                    why="a worker waits until that program closes it",
                    values={"path": path},
                    passing=True,
                    exit_code=ExitCode.STORE_UNREACHABLE,
                )
        return
    if path.is_symlink():
        target = path.readlink()
        yield _cannot_open(path, f"it is a link to {target}, which does not exist; is its disk mounted?")
        return
    yield from _moved(path)
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir():
        yield _cannot_open(folder, f"{folder} is not a folder")
    elif disks.mount_of(folder).read_only:
        yield _read_only(path, folder, "the file system is mounted read-only")
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield _cannot_open(folder, f"{folder} may not be written")


def _moved(path: Path) -> Iterator[Finding]:
    """Look whether a store was where none is: by what it leaves beside itself, and by who still holds it."""
    names = sorted(os.listdir(path.parent)) if disks.is_folder(path.parent) else []  # noqa: PTH208
    left = [name for name in names if name.startswith(path.name)]
    held = list(deleted.holding(path))
    if not (left or held):
        return
    finding = partial(MOVED.warn, f"the store {path} is not there any more", values={"folder": path.parent})
    if held:
        evidence = tuple(f"process {found.pid} still holds the deleted file" for found in held)
        yield finding(evidence=evidence, commands=(held[0].back(path),))
    else:
        yield finding(evidence=tuple(f"{name} was left behind" for name in left))


def look(path: Path) -> Iterator[Finding]:
    """Look at a SQLite file: who may read it, where it lies, whether it is whole. Finds nothing where all is well."""
    mount = disks.mount_of(path)
    if mount.over_network:
        what = f"{path} lies on {mount.kind}, a network file system"
        yield NETWORK_FILE_SYSTEM.warn(what, values={"path": path})
    if path.stat().st_mode & 0o077:
        yield PERMISSIONS.warn(f"other users may read {path}", values={"path": path})
    if mount.read_only:
        yield _read_only(path, path.parent, "the file system is mounted read-only")
    elif not os.access(path, os.W_OK) or not os.access(path.parent, os.W_OK):
        yield _read_only(path, path.parent, "its permissions do not allow it")
    seen = examine(path, limit=LONGEST_READ)
    if seen.damage is not None:
        yield DAMAGED.fail(
            f"{path} is damaged",
            evidence=(seen.damage,),
            commands=(rescue(path),),
            exit_code=ExitCode.MISCONFIGURED,
        )
    elif not seen.read_whole:
        yield DURABILITY.info(
            "a saved result survives a power cut",
            why=f"the file is large: its pages were not all read within {LONGEST_READ.total_seconds():g} s",
            commands=(shlex.join(["sqlite3", str(path), "PRAGMA quick_check"]),),
        )


def sound(path: Path) -> Finding:
    """Report that all is well, and which copies from before migrations are kept."""
    kept = (f"copy from before a migration: {place}" for place in copies.kept(path))
    return DURABILITY.ok("a saved result survives a power cut; the file is whole", *kept)


def rescue(path: Path) -> str:
    """Return the command that keeps a damaged file and saves what can be read of it."""
    copy = shlex.quote(f"{path}.damaged")
    return f"cp {shlex.quote(str(path))} {copy} && sqlite3 {copy} .recover > saved.sql"


def _cannot_open(place: Path, why: str) -> Finding:
    return CANNOT_OPEN.fail(
        "the store cannot be made where it is configured to be",
        why=why,
        values={"place": place},
        exit_code=ExitCode.MISCONFIGURED,
    )


def _read_only(path: Path, folder: Path, why: str) -> Finding:
    return READ_ONLY.fail(
        f"{path} or its folder cannot be written",
        why=why,
        values={"path": path, "folder": folder},
        exit_code=ExitCode.MISCONFIGURED,
    )
