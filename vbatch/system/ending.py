"""End processes without ever hitting another one: the identity is read again behind a handle on the process."""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from datetime import timedelta
from enum import StrEnum

from vbatch.system.processes import Liveness, ProcessIdentity, identify, liveness

LAST_PATIENCE = timedelta(seconds=5)  # after SIGKILL; what lives on then waits in the kernel


class Ended(StrEnum):
    """How an attempt to end a process came out."""

    ALREADY_GONE = "already_gone"
    TERMINATED = "terminated"  # it obeyed SIGTERM
    KILLED = "killed"  # it needed SIGKILL
    UNKILLABLE = "unkillable"  # it waits in the kernel; only a reboot helps
    REFUSED = "refused"  # the kernel forbids it: root without CAP_KILL, in a container


def end(identity: ProcessIdentity, *, grace: timedelta = timedelta(seconds=10)) -> Ended:
    """End exactly this process: SIGTERM, and SIGKILL after ``grace``. See ``end_all``."""
    return end_all([identity], grace=grace)[identity]


def end_all(
    identities: Sequence[ProcessIdentity], *, grace: timedelta = timedelta(seconds=10)
) -> dict[ProcessIdentity, Ended]:
    """End exactly these processes: SIGTERM to all, and SIGKILL after ``grace`` to those that remain.

    A pidfd is opened first and the identity read again after it, so that a recycled pid is never hit
    (pidfd_open(2)). The caller has proved that vbatch started the processes.
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


def _gone_by(handle: int, deadline: float) -> bool:
    """Wait until the process behind a pidfd has ended, which makes the pidfd readable."""
    poll = select.poll()
    poll.register(handle, select.POLLIN)
    return bool(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
