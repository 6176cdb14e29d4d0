"""Find the systemd unit of the process that listens on a port or a Unix socket, from /proc alone."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

PROC = Path("/proc")

_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp, proc_pid_net(5)
_SERVICE = re.compile(r"([^/]+\.service)(?:/|$)", re.M)
_OWN_UNIT = re.compile(r"user@\d+\.service")


def unit_of_port(port: int) -> str | None:
    """Return the unit that listens on this TCP port; None for nobody, a session, or whom we may not see."""
    return _unit_of(set(_tcp_inodes(port)))


def unit_of_socket(socket: Path) -> str | None:
    """Return the unit that listens on this Unix socket, under the same conditions."""
    rows = (line.split() for line in (PROC / "net/unix").read_text().splitlines()[1:])
    names = {str(socket), str(socket).replace("/run/", "/var/run/", 1), str(socket.resolve())}
    return _unit_of({row[6] for row in rows if len(row) == 8 and row[7] in names})


def _tcp_inodes(port: int) -> Iterator[str]:
    for table in ("net/tcp", "net/tcp6"):
        if not (PROC / table).exists():
            continue
        for line in (PROC / table).read_text().splitlines()[1:]:
            row = line.split()
            if row[3] == _LISTENING and int(row[1].rpartition(":")[2], 16) == port:
                yield row[9]


def _unit_of(inodes: set[str]) -> str | None:
    if not inodes:
        return None
    sockets = {f"socket:[{inode}]" for inode in inodes}
    for process in PROC.glob("[0-9]*"):
        try:
            if any(str(handle.readlink()) in sockets for handle in (process / "fd").iterdir()):
                return _unit_in((process / "cgroup").read_text())
        except OSError:
            continue  # it ended, or it is another user's
    return None


def _unit_in(cgroup: str) -> str | None:
    """Return the innermost service of a cgroup path, which is the process's own unit."""
    units = [unit for unit in _SERVICE.findall(cgroup) if not _OWN_UNIT.fullmatch(unit)]
    return units[-1].replace("\\x2d", "-") if units else None
