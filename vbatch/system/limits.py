"""Which limit of the machine an error comes from, in words, with the command that shows or lifts it.

Python and the kernel name few of them: a thread that cannot start may be out of memory or of processes, and "no space
left on device" is also said of a disk with free bytes and no free inodes.
"""

from __future__ import annotations

import errno
import os
import re
import resource
import shlex
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from vbatch.system import cgroups
from vbatch.text import size

_NO_THREAD = "can't start new thread"
_NO_IMPORT = "failed to map segment|cannot allocate memory|cannot map"
_NO_ERROR = "without exception set"  # the interpreter itself had no memory for the error
_STARTS_PROCESSES = frozenset(
    {"_execute_child", "_launch", "spawnv_passfds"}
)  # subprocess and multiprocessing


@dataclass(frozen=True, slots=True, kw_only=True)
class Limit:
    """What was reached, and a command that shows or raises it."""

    code: str
    message: str
    hint: str


def reached(error: BaseException) -> Limit | None:
    """Return the limit that an error comes from, or that of what caused it; None for an error of another kind."""
    seen: BaseException | None = error
    for _ in range(8):  # a chain may be a ring
        if seen is None:
            break
        if (limit := _reached(seen)) is not None:
            return limit
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return None


def _reached(error: BaseException) -> Limit | None:
    limit = None
    match error:
        case MemoryError() | OSError(errno=errno.ENOMEM):
            limit = _memory("out of memory")
        case SystemError() if _NO_ERROR in str(error):
            limit = _memory("out of memory")
        case RuntimeError() if _NO_THREAD in str(error):
            limit = _processes("a thread cannot be started")
        case ImportError() if re.search(_NO_IMPORT, str(error), re.I):
            limit = _memory("a library cannot be loaded")
        case OSError(errno=errno.EAGAIN) if _starts_process(error.__traceback__):
            limit = _processes("a process cannot be started")
        case OSError():
            limit = of_files(error.errno, _place(error))
    return limit


def of_files(number: int | None, place: str | None) -> Limit | None:
    """Return the limit that an error number stands for at a place; None for one that is no limit."""
    folder = _existing(place)
    quoted = shlex.quote(folder)
    match number:
        case errno.ENOSPC if inodes_used_up(Path(folder)):
            what = "no inodes are left on its file system: delete files, however small"
            code, hint = "no_inodes", f"df -i {quoted}"
        case errno.ENOSPC:
            code, what, hint = "disk_full", "the disk is full", f"df -h {quoted}"
        case errno.EDQUOT:
            code, what, hint = "disk_quota", "the disk quota is used up", "quota -s"
        case errno.EROFS:
            what = "its file system is mounted read-only"
            code, hint = "read_only", f"findmnt -T {quoted}"
        case errno.EMFILE:
            most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
            what = f"this process has too many files open; {most:,} are allowed"
            code, hint = "open_files", "ulimit -n 65536"
        case errno.ENFILE:
            what = "the machine has too many files open"
            code, hint = "open_files", "sysctl fs.file-nr fs.file-max"
        case _:
            return None
    return Limit(code=code, message=f"{place}: {what}" if place else what, hint=hint)


def words(error: OSError) -> str:
    """Return what an error of the operating system means, with its place."""
    limit = reached(error)
    return str(error) if limit is None else limit.message


def inodes_used_up(folder: Path) -> bool:
    """Whether no file can be made in a file system that has room for more bytes. Some count no inodes."""
    with suppress(OSError):
        room = os.statvfs(folder)
        return room.f_files > 0 and room.f_favail == 0 and room.f_bavail > 0
    return False


def no_more_files() -> Limit | None:
    """Return why this process cannot open any file; None where it can."""
    try:
        os.close(os.open(os.devnull, os.O_RDONLY | os.O_CLOEXEC))
    except OSError as error:
        return of_files(error.errno, None)
    return None


def _memory(what: str) -> Limit:
    most, _ = resource.getrlimit(resource.RLIMIT_AS)
    if most != resource.RLIM_INFINITY:
        return Limit(
            code="out_of_memory",
            message=f"{what}: this process may take {size(most)} of address space",
            hint="ulimit -v unlimited",
        )
    if (limit := cgroups.memory()) is not None:
        return Limit(
            code="out_of_memory",
            message=f"{what}: the group {limit.group} may take {size(limit.most)}",
            hint=f"cat {shlex.quote(str(limit.file))}",
        )
    return Limit(code="out_of_memory", message=what, hint="free -h")


def _processes(what: str) -> Limit:
    """Say which limit keeps a thread or process from starting; several may, and the one that is reached is named."""
    if (limit := cgroups.processes_used_up()) is not None:
        return Limit(
            code="processes",
            message=f"{what}: the group {limit.group} may have {limit.most:,} processes and threads",
            hint=f"cat {shlex.quote(str(limit.file))}   # TasksMax= of a service",
        )
    if resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY:
        return _memory(what)
    most, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if most != resource.RLIM_INFINITY and os.geteuid() != 0:
        return Limit(
            code="processes",
            message=f"{what}: this user may have {most:,} processes and threads",
            hint="ulimit -u",
        )
    return Limit(
        code="processes", message=f"{what}: too many processes, or too little memory", hint="free -h"
    )


def _starts_process(trace: TracebackType | None) -> bool:
    """Whether an error comes from starting a process: EAGAIN is also said of a lock."""
    while trace is not None:
        if trace.tb_frame.f_code.co_name in _STARTS_PROCESSES:
            return True
        trace = trace.tb_next
    return False


def _place(error: OSError) -> str | None:
    return os.fsdecode(error.filename) if isinstance(error.filename, str | bytes | os.PathLike) else None


def _existing(place: str | None) -> str:
    """Return the place, or the next folder above it that is there."""
    if place is None:
        return os.curdir
    try:
        path = os.path.abspath(place)  # noqa: PTH100  (any bytes)
    except OSError:  # the current folder was removed
        return os.curdir
    while not os.path.exists(path) and path != os.sep:  # noqa: PTH110
        path = os.path.dirname(path)  # noqa: PTH120
    return path
