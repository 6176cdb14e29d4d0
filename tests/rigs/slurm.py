"""A real Slurm on this machine: one controller and one node with two GPUs, which are there in name alone.

It needs Debian's packages (``apt-get install --no-install-recommends slurmctld slurmd slurm-client``), no munge, no
accounts and no systemd: all of its files are in one folder, and its daemons end with the test.
"""

from __future__ import annotations

import contextlib
import getpass
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.rigs.waiting import SILENCE, until

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "scancel")
GPUS = ("/dev/null", "/dev/zero")  # Slurm wants a device for each
_PATH = os.pathsep.join(filter(None, (os.environ.get("PATH"), "/usr/sbin")))


def missing() -> list[str]:
    """Return the programs of Slurm that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program, path=_PATH) is None]


@dataclass(frozen=True)
class Slurm:
    """A cluster that runs. Jobs have the variables of ``environment``."""

    folder: Path
    environment: Mapping[str, str]

    def run(self, *command: str) -> str:
        """Run one of Slurm's commands; return what it prints on both streams."""
        done = subprocess.run(
            command,
            env={**self.environment, "SLURM_CONF": str(self._configuration)},
            cwd=self.folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def jobs(self, state: str) -> list[str]:
        """Return the tasks that are in this state: JOB_TASK each."""
        return self.run("squeue", "--noheader", "--array", "--format=%F_%K", f"--states={state}").split()

    @property
    def _configuration(self) -> Path:
        return self.folder / "slurm.conf"

    def start(self, daemon: str) -> subprocess.Popen[bytes]:
        """Start slurmctld or slurmd."""
        with (self.folder / f"{daemon}.out").open("wb") as out:
            command = [daemon, "-D", "-f", str(self._configuration)]
            return subprocess.Popen(command, env=os.environ | {"PATH": _PATH}, stdout=out, stderr=out)

    @property
    def log(self) -> str:
        """What the daemons have logged."""
        return "\n".join(path.read_text(errors="replace")[-2000:] for path in self.folder.glob("*.out"))


@contextmanager
def slurm(folder: Path, environment: Mapping[str, str]) -> Iterator[Slurm]:
    """Keep a cluster running, and end it with all that it started."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "slurm.conf").write_text(_configuration(folder))
    (folder / "gres.conf").write_text("".join(f"Name=gpu File={device}\n" for device in GPUS))
    cluster = Slurm(folder, environment)
    with ExitStack() as running:
        for daemon in ("slurmctld", "slurmd"):
            running.callback(_end, cluster.start(daemon))
        until(lambda: _is_ready(cluster), pause=0.2)
        yield cluster


def _is_ready(cluster: Slurm) -> bool:
    with contextlib.suppress(AssertionError):  # not listening yet
        return cluster.run("sinfo", "--noheader", "--format=%T").strip() == "idle"
    return False


def _end(daemon: subprocess.Popen[bytes]) -> None:
    below = psutil.Process(daemon.pid).children(recursive=True) if daemon.poll() is None else []
    daemon.terminate()
    daemon.wait(SILENCE)
    for process in below:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.kill()


def _configuration(folder: Path) -> str:
    host, (controller, node) = socket.gethostname(), _free_ports()
    settings = {
        "ClusterName": "tests",
        "SlurmctldHost": f"{host}(127.0.0.1)",
        "SlurmctldPort": controller,
        "SlurmdPort": node,
        "AuthType": "auth/none",
        "CredType": "cred/none",
        "SlurmUser": getpass.getuser(),
        "SlurmdUser": getpass.getuser(),
        "StateSaveLocation": folder / "state",
        "SlurmdSpoolDir": folder / "spool",
        "SlurmctldPidFile": folder / "slurmctld.pid",
        "SlurmdPidFile": folder / "slurmd.pid",
        "ProctrackType": "proctrack/linuxproc",
        "TaskPlugin": "task/none",
        "SwitchType": "switch/none",
        "MpiDefault": "none",
        "SelectType": "select/cons_tres",
        "SelectTypeParameters": "CR_CPU",
        "SlurmdParameters": "config_overrides",  # more CPUs and memory than there are
        "GresTypes": "gpu",
    }
    lines = [f"{name}={value}" for name, value in settings.items()]
    lines.append(f"NodeName={host} NodeAddr=127.0.0.1 CPUs=64 RealMemory=1000000 Gres=gpu:{len(GPUS)}")
    lines.append("PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP")
    return "\n".join([*lines, ""])


def _free_ports() -> tuple[int, int]:
    with socket.socket() as first, socket.socket() as second:
        for each in (first, second):
            each.bind(("127.0.0.1", 0))
        return first.getsockname()[1], second.getsockname()[1]
