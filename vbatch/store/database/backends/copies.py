"""The copy of a SQLite file that is made before its tables are changed. The newest one is kept."""

from __future__ import annotations

import logging
import os
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

from vbatch.errors import StoreMisconfigured
from vbatch.store.database.backends.protocol import Fault
from vbatch.system import disks
from vbatch.text import size

log = logging.getLogger(__name__)

SPARE = 16 << 20  # bytes that must be free beside the copy, for the migration itself
_SUFFIX = ".bak"


def make(path: Path) -> None:
    """Copy a database beside itself, in place of earlier copies. An empty one is not worth it.

    Raises StoreMisconfigured where there is no room for that.
    """
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as source:
        if not source.execute("SELECT name FROM sqlite_master WHERE name = 'alembic_version'").fetchall():
            return
        _require_room(path, source)
        (revision,) = source.execute("SELECT version_num FROM alembic_version").fetchone()
        target = path.with_name(f"{path.name}.before-{revision}{_SUFFIX}")
        growing = target.with_name(f"{target.name}.tmp")
        try:
            os.close(os.open(growing, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600))
            with closing(sqlite3.connect(growing)) as copy:
                source.backup(copy)
            growing.replace(target)
        finally:
            growing.unlink(missing_ok=True)
    for earlier in kept(path):
        if earlier != target:
            earlier.unlink(missing_ok=True)
    log.info("store.backed_up file=%s", target)


def kept(path: Path) -> list[Path]:
    """Return the copies of this database that are there."""
    begin = f"{path.name}.before-"
    return sorted(
        place
        for place in path.parent.iterdir()
        if place.name.startswith(begin) and place.name.endswith(_SUFFIX)
    )


def _require_room(path: Path, database: sqlite3.Connection) -> None:
    ((pages,),) = database.execute("PRAGMA page_count")
    ((page_size,),) = database.execute("PRAGMA page_size")
    needed, free = pages * page_size + SPARE, disks.mount_of(path).free
    if free < needed:
        raise StoreMisconfigured(
            f"the store {path} must be copied before its tables are changed, and its disk is too full: "
            f"{size(needed)} needed, {size(free)} free",
            hint=shlex.join(["df", "-h", str(path.parent)]),
            fault=Fault.DISK,
        )
