"""Tell systemd how the service is: sd_notify(3) as a datagram, a no-op where nobody listens."""

from __future__ import annotations

import os
import socket
from datetime import timedelta


def notify(*assignments: str) -> None:
    """Send assignments such as ``READY=1`` or ``STATUS=…``. A service manager that went away is no error."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if address[:1] not in ("/", "@"):
        return
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as channel:
        try:
            channel.connect("\0" + address[1:] if address.startswith("@") else address)
            channel.sendall("\n".join(assignments).encode())
        except OSError:
            return


def watchdog_interval() -> timedelta | None:
    """Return how often systemd wants to hear ``WATCHDOG=1``: half its limit (sd_watchdog_enabled(3))."""
    microseconds = os.environ.get("WATCHDOG_USEC", "")
    pid = os.environ.get("WATCHDOG_PID")
    if not microseconds.isdigit() or (pid is not None and pid != str(os.getpid())):
        return None
    return timedelta(microseconds=int(microseconds)) / 2
