"""The server's unit on this machine: planned beside the workers', started after them, removed before them."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from pathlib import Path

from vbatch.system import listening, units
from vbatch.system.files import text_of
from vbatch.system.systemd import Systemd, SystemdRefused
from vbatch.system.units import SERVER_UNIT, Places

POLL = timedelta(milliseconds=200)


def is_enabled(where: Places) -> bool:
    """Return whether the server starts with the target."""
    return (where.wants / SERVER_UNIT).is_symlink()


def wait(systemd: Systemd, *, report: Callable[[str], None], limit: timedelta) -> tuple[bool, str] | None:
    """Wait until the server answers; return whether it does, and where. None where it ended instead."""
    deadline = time.monotonic() + limit.total_seconds()
    while True:
        seen = systemd.show(SERVER_UNIT, "ActiveState", "SubState", "MainPID", "Job")
        ended = seen["ActiveState"] in ("failed", "inactive") or seen["SubState"] == "auto-restart"
        if seen.get("Job", "0") in ("", "0"):  # before that, it is the process of before a restart
            if ended:
                return None
            with suppress(OSError):  # it does not answer yet
                for address, port in listening.addresses(int(seen.get("MainPID") or 0)):
                    listening.status(address, port, "/health")
                    return True, listening.url(address, port)
        if time.monotonic() > deadline:
            return False, ""
        report(f"{SERVER_UNIT}: starting")
        time.sleep(POLL.total_seconds())


def remove(systemd: Systemd, where: Places, stop: Callable[[tuple[str, ...]], None]) -> tuple[str, ...]:
    """Stop, disable and remove it; return its name where there was anything of it."""
    there = bool(text_of(where.server))
    loaded = systemd.units(SERVER_UNIT)
    if not (there or is_enabled(where) or loaded):
        return ()
    if loaded:
        stop((SERVER_UNIT,))
        with suppress(SystemdRefused):  # it had not failed
            systemd.systemctl("reset-failed", SERVER_UNIT)
    if there:
        systemd.systemctl("disable", SERVER_UNIT)
    (where.wants / SERVER_UNIT).unlink(missing_ok=True)
    where.server.unlink(missing_ok=True)
    with suppress(OSError):  # a person's drop-ins are in it, or it is not there
        where.server_drop_ins.rmdir()
    return (SERVER_UNIT,)


def edited(where: Places) -> Path | None:
    """Return the first unit that was changed by hand: the workers' or the server's."""
    texts = ((file, text_of(file)) for file in (where.unit, where.server))
    return next((file for file, text in texts if text and not units.intact(text)), None)
