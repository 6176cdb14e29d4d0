"""What serves a port or a socket of this machine: a container of docker or podman, or a unit of systemd.

docker and podman are asked; of other processes /proc alone shows the unit.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vbatch.system import processes

LIMIT = timedelta(seconds=10)
ENGINES = ("docker", "podman")

# Policies that start a container again after a reboot: docker by its daemon, podman by a unit of its own.
_COME_BACK = {"docker": ("always", "unless-stopped"), "podman": ("always",)}

PROC = Path("/proc")

_LISTENING = "0A"  # TCP_LISTEN in /proc/net/tcp, proc_pid_net(5)
_SERVICE = re.compile(r"([^/]+\.service)(?:/|$)", re.M)
_OWN_UNIT = re.compile(r"user@\d+\.service")


@dataclass(frozen=True, slots=True, kw_only=True)
class Container:
    """A container that publishes a port on this machine."""

    engine: str
    name: str
    restart_policy: str

    @property
    def comes_back(self) -> bool:
        """Whether it is started again after a reboot."""
        return self.restart_policy in _COME_BACK[self.engine]

    @property
    def remedy(self) -> str:
        """The command that makes it come back."""
        name = shlex.quote(self.name)
        if self.engine == "docker":
            return f"docker update --restart unless-stopped {name}"
        return f"podman update --restart always {name} && systemctl enable podman-restart.service"

    @property
    def unit(self) -> str:
        """The unit to be ordered after."""
        return f"{self.engine}.service"


def publishing(port: int) -> Container | None:
    """Return the container behind this port; None where there is none, or no engine answers."""
    for engine in ENGINES:
        listed = _ask(engine, "ps", "--format", "{{.Names}}\t{{.Ports}}")
        for line in listed.splitlines():
            name, _, ports = line.partition("\t")
            if re.search(rf":{port}->", ports):
                policy = _ask(engine, "inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}", name)
                return Container(engine=engine, name=name, restart_policy=policy.strip() or "no")
    return None


def unit_of_port(port: int) -> str | None:
    """Return the unit that listens on this TCP port; None for no process, a session, or one that may not be seen."""
    return _unit_of(set(_tcp_inodes(port)))


def unit_of_socket(socket: Path) -> str | None:
    """Return the unit that listens on this Unix socket, under the same conditions."""
    rows = (line.split() for line in (PROC / "net/unix").read_text().splitlines()[1:])
    names = {str(socket), str(socket).replace("/run/", "/var/run/", 1), str(socket.resolve())}
    return _unit_of({row[6] for row in rows if len(row) == 8 and row[7] in names})


def _ask(engine: str, *arguments: str) -> str:
    """Return the answer; nothing where the engine is missing, not running, or may not be asked."""
    if shutil.which(engine) is None:
        return ""
    try:
        done = subprocess.run(
            [engine, *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=LIMIT.total_seconds(),
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout if done.returncode == 0 else ""


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
        if any(target in sockets for _, target in processes.open_files(process)):
            with suppress(OSError):  # it has ended
                return _unit_in((process / "cgroup").read_text())
    return None


def _unit_in(cgroup: str) -> str | None:
    """Return the innermost service of a cgroup path, which is the process's own unit."""
    units = [unit for unit in _SERVICE.findall(cgroup) if not _OWN_UNIT.fullmatch(unit)]
    return units[-1].replace("\\x2d", "-") if units else None
