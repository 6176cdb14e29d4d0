"""Find out who a process is and whether it still lives, and end one without ever hitting another.

Identities are values that outlive the process (``vbatch.system.identity``). What a process *is called* never decides
anything here: titles can be set by anyone.
"""

from __future__ import annotations

import os
import re
import select
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import NamedTuple

import psutil

from vbatch.system.identity import ProcessIdentity

_PROC = Path("/proc")

LAST_PATIENCE = timedelta(seconds=5)  # after SIGKILL; what lives on then waits in the kernel


class Liveness(StrEnum):
    """What can be known about a process from here."""

    ALIVE = "alive"
    GONE = "gone"
    UNKNOWN = "unknown"  # another machine, or another pid namespace of this one


class Ended(StrEnum):
    """How an attempt to end a process came out."""

    ALREADY_GONE = "already_gone"
    TERMINATED = "terminated"  # it obeyed SIGTERM
    KILLED = "killed"  # it needed SIGKILL
    UNKILLABLE = "unkillable"  # it waits in the kernel; only a reboot helps
    REFUSED = "refused"  # the kernel does not let us: root without CAP_KILL, in a container


def current() -> ProcessIdentity:
    """Return who we are."""
    identity = identify(os.getpid())
    assert identity is not None, "/proc is not mounted"
    return identity


def identify(pid: int) -> ProcessIdentity | None:
    """Return who has this pid now, in our own pid namespace; None when nobody has, or only a zombie."""
    found = _stat(pid)
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
    nobody of the earlier boot lives. A zombie is gone: it runs nothing and holds nothing.
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
    """Whether our pid namespace is the machine's own, in which drivers count (PROC_PID_INIT_INO of the kernel)."""
    return _pid_namespace() == 0xEFFFFFFC


def title(pid: int) -> str:
    """Return what the process calls itself; empty when it is gone."""
    with suppress(psutil.Error, OSError):
        return " ".join(psutil.Process(pid).cmdline()).strip()
    return ""


def cgroup(pid: int) -> str | None:
    """Return its control group (version 2), which names its service or container."""
    with suppress(OSError):
        for line in (_PROC / str(pid) / "cgroup").read_text().splitlines():
            if line.startswith("0::"):
                return line.removeprefix("0::")
    return None


def descendants(pid: int, *, deep: bool = True) -> list[int]:
    """Return the pids of its living children and, where ``deep``, of their children, and so on."""
    with suppress(psutil.Error):
        return [child.pid for child in psutil.Process(pid).children(recursive=deep)]
    return []


def ancestors(pid: int) -> list[int] | None:
    """Return the pids of its parent, that one's parent, and so on; None where that cannot be told.

    The last one may be hidden (/proc mounted with hidepid): it is another user's, and so no worker of ours.
    """
    for _ in range(3):  # one that goes while we look has its children taken in by another
        found: list[int] = []
        at = pid
        while (stat := _stat(at)) is not None and stat.parent:
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
    with suppress(psutil.Error):
        return int(psutil.Process(pid).uids().effective)
    return None


def titles() -> list[str]:
    """Return the titles of all processes that can be seen."""
    return [title(pid) for pid in psutil.pids()]


def entitled(pattern: re.Pattern[str]) -> list[int]:
    """Return the pids of those whose title begins like this."""
    return [pid for pid in psutil.pids() if pattern.match(title(pid))]


def age(pid: int) -> timedelta | None:
    """Return for how long it has lived; None when it is gone."""
    with suppress(psutil.Error):
        return timedelta(seconds=max(0.0, time.time() - psutil.Process(pid).create_time()))
    return None


def resident_memory(pid: int) -> int:
    """Return the bytes of memory that it holds; 0 when it is gone."""
    with suppress(psutil.Error):
        return int(psutil.Process(pid).memory_info().rss)
    return 0


def is_condemned(pid: int) -> bool:
    """Whether a SIGKILL is pending that it does not obey: it waits in the kernel (proc_pid_status(5), ShdPnd)."""
    with suppress(OSError, ValueError):
        for line in (_PROC / str(pid) / "status").read_text().splitlines():
            name, _, value = line.partition(":")
            if name in ("SigPnd", "ShdPnd") and int(value, 16) & 1 << (signal.SIGKILL - 1):
                return True
    return False


def end(identity: ProcessIdentity, *, grace: timedelta = timedelta(seconds=10)) -> Ended:
    """End exactly this process: SIGTERM, and SIGKILL after ``grace``. See ``end_all``."""
    return end_all([identity], grace=grace)[identity]


def end_all(
    identities: Sequence[ProcessIdentity], *, grace: timedelta = timedelta(seconds=10)
) -> dict[ProcessIdentity, Ended]:
    """End exactly these processes: SIGTERM to all, and SIGKILL after ``grace`` to those that remain.

    A pidfd is opened first and the identity read again after it, so that a recycled pid is never hit
    (pidfd_open(2)). The caller has proved that the processes are ours to end.
    """
    outcomes = dict.fromkeys(identities, Ended.ALREADY_GONE)
    with ExitStack() as stack:
        handles: dict[ProcessIdentity, int] = {}
        for identity in outcomes:
            with suppress(ProcessLookupError):
                if liveness(identity) is Liveness.ALIVE:
                    handle = os.pidfd_open(identity.pid)
                    stack.callback(os.close, handle)
                    if identify(identity.pid) == identity:
                        handles[identity] = handle
        for number, patience, outcome in (
            (signal.SIGTERM, grace, Ended.TERMINATED),
            (signal.SIGKILL, LAST_PATIENCE, Ended.KILLED),
        ):
            for identity, handle in list(handles.items()):
                try:
                    signal.pidfd_send_signal(handle, number)
                except ProcessLookupError:
                    continue
                except PermissionError:
                    outcomes[identity] = Ended.REFUSED
                    del handles[identity]
            deadline = time.monotonic() + patience.total_seconds()
            for identity, handle in list(handles.items()):
                if _gone_by(handle, deadline):
                    outcomes[identity] = outcome
                    del handles[identity]
        outcomes |= dict.fromkeys(handles, Ended.UNKILLABLE)
    return outcomes


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


def _gone_by(handle: int, deadline: float) -> bool:
    """Wait until the process behind a pidfd has ended, which makes the pidfd readable."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))


class _Stat(NamedTuple):
    """Fields 3, 4 and 22 of /proc/PID/stat (proc_pid_stat(5))."""

    state: str
    parent: int
    start_ticks: int


def _stat(pid: int) -> _Stat | None:
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    fields = stat[stat.rindex(b")") + 2 :].split()  # the name in field 2 may hold spaces and brackets
    return _Stat(fields[0].decode(), int(fields[1]), int(fields[19]))


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
