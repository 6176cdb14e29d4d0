"""Who a process is, whether it still lives, and what can be seen of it.

What a process *is called* never decides anything here: any program can set its title.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

_PROC = Path("/proc")


@dataclass(frozen=True, slots=True, kw_only=True)
class ProcessIdentity:
    """One process of one boot of one machine, as a value that is comparable across crashes and reboots.

    A pid alone is recycled; with the boot id and the start time it never is. The host says only where a boot
    was, and is not compared: its name may change while the process lives (DHCP). ``start_ticks`` is field 22
    of ``/proc/PID/stat`` (clock ticks since boot, proc_pid_stat(5)). ``pid_namespace`` is the inode of
    ``/proc/PID/ns/pid``: a pid means nothing outside its namespace.
    """

    host: str = field(compare=False)
    boot_id: str
    pid_namespace: int
    pid: int
    start_ticks: int


class Liveness(StrEnum):
    """What can be known about a process from here."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"  # another machine, or another pid namespace of this one


def current() -> ProcessIdentity:
    """Return the identity of this process."""
    identity = identify(os.getpid())
    if identity is None:
        (_PROC / "self" / "stat").read_bytes()  # says why: too many open files
    assert identity is not None, "/proc is not mounted"
    return identity


def identify(pid: int) -> ProcessIdentity | None:
    """Return which process has this pid now, in this pid namespace; None where none has, or only a zombie."""
    found = stat_of(pid)
    if found is None or found.state in "ZX":
        return None
    return ProcessIdentity(
        host=_host(),
        boot_id=_boot_id(),
        pid_namespace=_pid_namespace(),
        pid=pid,
        start_ticks=found.start_ticks,
    )


def liveness(identity: ProcessIdentity) -> Liveness:
    """Decide whether a process lives, where that can be known at once.

    On the same boot, in the same pid namespace: by its pid and start time. After a reboot of the same host
    no process of the earlier boot lives. A zombie is gone: it runs nothing and holds nothing.
    """
    if identity.boot_id != _boot_id():
        return Liveness.GONE if identity.host == _host() else Liveness.UNKNOWN
    if identity.pid_namespace != _pid_namespace():
        return Liveness.UNKNOWN
    return Liveness.ALIVE if identify(identity.pid) == identity else Liveness.GONE


def is_gone(identity: ProcessIdentity) -> bool:
    """Whether a process provably lives no more."""
    return liveness(identity) is Liveness.GONE


def among_all() -> bool:
    """Whether this pid namespace is the machine's own, in which drivers count (PROC_PID_INIT_INO of the kernel)."""
    return _pid_namespace() == 0xEFFFFFFC


def title(pid: int) -> str:
    """Return what the process calls itself; empty when it is gone."""
    with suppress(OSError):
        return os.fsdecode((_PROC / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ")).strip()
    return ""


def cgroup(pid: int) -> str | None:
    """Return its control group (version 2), which names its service or container."""
    with suppress(OSError):
        for line in (_PROC / str(pid) / "cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line.removeprefix("0::")
    return None


def ancestors(pid: int) -> list[int] | None:
    """Return the pids of its parent, that one's parent, and so on; None where that cannot be seen.

    The last one may be hidden (/proc mounted with hidepid): it is another user's, and so no worker of this one's.
    """
    for _ in range(3):  # one that ends meanwhile has its children taken in by another
        found: list[int] = []
        at = pid
        while (stat := stat_of(at)) is not None and stat.parent:
            at = stat.parent
            found.append(at)
        if stat is not None or (found and _is_hidden(at)):
            return found
    return None


def _is_hidden(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except OSError as error:
        return isinstance(error, PermissionError)
    return False


def owner(pid: int) -> int | None:
    """Return the user id that the process runs as; None when it is gone."""
    psutil = _psutil()
    with suppress(psutil.Error):
        return int(psutil.Process(pid).uids().effective)
    return None


def pids() -> Iterator[int]:
    """Yield the pids of all processes that can be seen, zombies included."""
    return (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit())


def open_files(process: Path) -> Iterator[tuple[Path, str]]:
    """Yield the descriptors of a process, given as ``/proc/PID``, and what each leads to: a path, ``socket:[INODE]`` …

    None where it has ended or is another user's; one that is closed meanwhile is left out, and the others are not.
    """
    try:
        descriptors = sorted((process / "fd").iterdir())
    except OSError:
        return
    for descriptor in descriptors:
        with suppress(OSError):
            yield descriptor, os.readlink(descriptor)  # noqa: PTH115  (a text that is no path)


def titles() -> list[str]:
    """Return the titles of all processes that can be seen."""
    return [title(pid) for pid in pids()]


def entitled(pattern: re.Pattern[str]) -> list[int]:
    """Return the pids of those whose title begins like this."""
    return [pid for pid in pids() if pattern.match(title(pid))]


def age(pid: int) -> timedelta | None:
    """Return for how long it has lived; None when it is gone."""
    psutil = _psutil()
    with suppress(psutil.Error):
        return timedelta(seconds=max(0.0, time.time() - psutil.Process(pid).create_time()))
    return None


def resident_memory(pid: int) -> int:
    """Return the bytes of memory that it holds; 0 when it is gone."""
    psutil = _psutil()
    with suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def is_condemned(pid: int) -> bool:
    """Whether a SIGKILL is pending that it does not obey: it waits in the kernel (proc_pid_status(5), ShdPnd)."""
    with suppress(OSError, ValueError):
        # A name may hold any character that ends a line for Python; the kernel escapes the one that ends it here.
        for line in (_PROC / str(pid) / "status").read_bytes().decode(errors="replace").split("\n"):
            name, _, value = line.partition(":")
            if name in ("SigPnd", "ShdPnd") and int(value, 16) & 1 << (signal.SIGKILL - 1):
                return True
    return False


class Stat(NamedTuple):
    """Fields 3, 4 and 22 of /proc/PID/stat (proc_pid_stat(5))."""

    state: str
    parent: int
    start_ticks: int


def stat_of(pid: int) -> Stat | None:
    """Return what /proc/PID/stat says; None when the process is gone, or hidden (hidepid=1)."""
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name in field 2 may hold spaces and brackets
    return Stat(fields[0].decode(), int(fields[1]), int(fields[19]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Description:
    """What a person needs to recognise a process."""

    pid: int
    name: str
    title: str
    user: str
    state: str
    cgroup: str | None


def describe(pid: int) -> Description | None:
    """Return what a person needs to recognise a process; None when it is gone."""
    psutil = _psutil()
    with suppress(psutil.Error):
        process = psutil.Process(pid)
        with process.oneshot():
            return Description(
                pid=pid,
                name=process.name(),
                title=title(pid) or process.name(),
                user=process.username(),
                state=process.status(),
                cgroup=cgroup(pid),
            )
    return None


def _psutil() -> ModuleType:
    """Import psutil where it is asked: it takes a sixth of the time of ``vbatch list``, which does not need it."""
    import psutil

    module: ModuleType = psutil
    return module


@cache
def _boot_id() -> str:
    return (_PROC / "sys/kernel/random/boot_id").read_text().strip()


def _pid_namespace() -> int:
    return (_PROC / "self/ns/pid").stat().st_ino


@cache
def _host() -> str:
    """Name this machine so that it is known again after a reboot: a cloned disk alone is not the same host."""
    machine_id = ""
    with suppress(OSError):
        machine_id = Path("/etc/machine-id").read_text().strip()
    return f"{os.uname().nodename}/{machine_id}"
