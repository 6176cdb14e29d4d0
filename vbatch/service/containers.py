"""Ask docker and podman which container publishes a port, and whether it comes back after a reboot."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from dataclasses import dataclass
from datetime import timedelta

LIMIT = timedelta(seconds=10)
ENGINES = ("docker", "podman")

# Policies that start a container again after a reboot: docker by its daemon, podman by a unit of its own.
_COME_BACK = {"docker": ("always", "unless-stopped"), "podman": ("always",)}


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
    """Return the container behind this port; None where there is none, or no engine answers us."""
    for engine in ENGINES:
        listed = _ask(engine, "ps", "--format", "{{.Names}}\t{{.Ports}}")
        for line in listed.splitlines():
            name, _, ports = line.partition("\t")
            if re.search(rf":{port}->", ports):
                policy = _ask(engine, "inspect", "--format", "{{.HostConfig.RestartPolicy.Name}}", name)
                return Container(engine=engine, name=name, restart_policy=policy.strip() or "no")
    return None


def _ask(engine: str, *arguments: str) -> str:
    """Return the answer; nothing where the engine is missing, down, or not ours to ask."""
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
