"""A SQLite file on a network file system: refused where it would be damaged, which one host alone does not do.

The locks of such file systems are not reliable between hosts (sqlite.org/faq.html, question 5), and on some there are
none at all.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import tempfile
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from vbatch.errors import StoreMisconfigured
from vbatch.store import registry
from vbatch.store.database import Store
from vbatch.store.database.backends.protocol import Fault
from vbatch.system import disks, processes

FRESH = timedelta(
    seconds=90
)  # a worker that has been silent for longer is not taken to work any more: a lease

_HINT = "use PostgreSQL for several machines, or a local disk: VBATCH_DATA_DIR=/var/tmp/vbatch"
_WHOLE_FILE = struct.pack("hhqqi", fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)


def require_safe(store: Store) -> None:
    """Raise StoreMisconfigured where a SQLite file must not be written from here."""
    file = store.file
    if file is None:
        return
    with suppress(OSError):  # what is wrong with the disk is reported where the file is used
        mount = disks.mount_of(file)
        if not mount.over_network:
            return
        if not locks_work(file.parent):
            raise StoreMisconfigured(
                f"the store {file} is on {mount.kind}, a network file system, whose locks do not work: "
                "two processes would damage it",
                hint=_HINT,
                fault=Fault.LOCKED,
            )
        _require_one_host(store, file, mount.kind)


def _require_one_host(store: Store, file: Path, kind: str) -> None:
    here = processes.current()
    for worker in registry.live(store):
        other = worker.identity.host != here.host and worker.identity.boot_id != here.boot_id
        if other and worker.silent < FRESH:
            name = worker.identity.host.partition("/")[0]
            raise StoreMisconfigured(
                f"the store {file} is on {kind}, a network file system, and process {worker.identity.pid} on {name} "
                "works with it: two hosts would damage it",
                hint=_HINT,
                fault=Fault.LOCKED,
            )


def locks_work(folder: Path) -> bool:
    """Whether a lock keeps others out there: of two open files, which count as two processes (F_OFD_SETLK)."""
    with tempfile.NamedTemporaryFile(dir=folder, prefix=".vbatch-lock-") as first:
        second = os.open(first.name, os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.fcntl(first, fcntl.F_OFD_SETLK, _WHOLE_FILE)
            fcntl.fcntl(second, fcntl.F_OFD_SETLK, _WHOLE_FILE)
        except OSError as error:
            return error.errno in (errno.EAGAIN, errno.EACCES)
        finally:
            os.close(second)
    return False
