"""The text of the unit: every key with its reason, for the systemd that will read it, and what it says read back.

Touches nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from vbatch import __version__
from vbatch.config import gpu_setting
from vbatch.errors import ExitCode
from vbatch.service import machine
from vbatch.service.accounts import Account
from vbatch.service.environment import LIBRARY_PATH
from vbatch.service.machine import Mount
from vbatch.service.quoting import command, path, word, words
from vbatch.system import units
from vbatch.system.units import TEMPLATE, Scope, instance

GROWING_DELAYS = 254  # RestartSteps= and RestartMaxDelaySec=; systemd before 249 (Ubuntu 22.04) was not tried

PATIENCE = timedelta(seconds=60)  # of doctor before the start: the incident's 30 tries, 2 s apart
START_LIMIT = timedelta(minutes=3)  # of each step of a start; the worker extends it while it has a reason
AFTER_DRAIN = timedelta(minutes=1)  # what a stop takes beyond the drain limit: save, unload, give memory back
WATCHDOG = timedelta(minutes=3)
FIRST_DELAY = timedelta(seconds=5)
# systemd keeps counting after a good start: weeks later a crash still waits so long.
LONGEST_DELAY = timedelta(minutes=1)
DELAY_STEPS = 8
ONLY_DELAY = timedelta(seconds=20)  # where systemd knows no growing ones

# What a start depends on; whether vLLM itself is well, the worker finds out by loading it.
_DOCTOR = ("doctor", "store", "host", "queue", "gpu", "--fix", "--yes")

Key = tuple[str, str]

# What the system service gives up: everything that neither CUDA, nor a JIT compiler, nor a batch needs.
# Measured with ``systemd-analyze security``; a test keeps the score. What is left out, and why:
#
# * MemoryDenyWriteExecute: Triton, Inductor and CUDA compile into memory and run it.
# * PrivateDevices, DevicePolicy, and ProtectClock, which implies a device list: they hide the GPU.
# * PrivateTmp, ProtectHome, ProtectSystem=strict: an output file is written beside its input, wherever that is.
# * ProtectProc, ProcSubset: doctor names the processes that hold GPU memory.
# * A list of *allowed* system calls: PyTorch shares memory with pidfd_getfd, NCCL with process_vm_readv.
# * RemoveIPC: it removes the shared memory of everything else that the same person runs.
# * PrivateNetwork, IPAddressDeny: the store may be remote, and models come from a hub.
SANDBOX: tuple[Key, ...] = (
    ("NoNewPrivileges", "yes"),
    ("UMask", "0077"),
    ("ProtectSystem", "full"),
    ("ProtectHostname", "yes"),
    ("ProtectKernelTunables", "yes"),
    ("ProtectKernelModules", "yes"),
    ("ProtectKernelLogs", "yes"),
    ("ProtectControlGroups", "yes"),
    ("RestrictAddressFamilies", "AF_UNIX AF_INET AF_INET6 AF_NETLINK"),
    ("RestrictNamespaces", "yes"),
    ("RestrictRealtime", "yes"),
    ("RestrictSUIDSGID", "yes"),
    ("LockPersonality", "yes"),
    ("SystemCallArchitectures", "native"),
    ("SystemCallFilter", "~@clock @cpu-emulation @module @mount @obsolete @raw-io @reboot @swap"),
    ("SystemCallErrorNumber", "EPERM"),
)

# root without these would not be able to write beside a person's file, nor to end an engine of that person;
# another account has no capabilities to begin with.
CAPABILITIES_OF_ROOT = "CAP_CHOWN CAP_DAC_OVERRIDE CAP_DAC_READ_SEARCH CAP_FOWNER CAP_KILL CAP_SYS_PTRACE"

_ACCOUNT = re.compile(r"^User=(.+)$", re.MULTILINE)
_WORKER = re.compile(r"^ExecStart=.*? -m vbatch run-worker( .*)?$", re.MULTILINE)
_ENV = "/usr/bin/env"
_LIBRARIES = re.compile(rf"^ExecStart=:{_ENV} (\"?{LIBRARY_PATH}=.*)$", re.MULTILINE)
_GPU = re.compile(r"^Environment=VBATCH_GPU=%i$", re.MULTILINE)
_NUMBERED = re.compile(re.escape(instance("N")).replace("N", r"(\d+(?:_\d+)*)"))


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitSpec:
    """All that the unit's text depends on."""

    scope: Scope
    systemd: int
    python: str
    account: Account
    environment_file: Path
    search_path: str
    worker_arguments: tuple[str, ...]
    one_per_gpu: bool
    modprobe: tuple[tuple[str, ...], ...]
    drain_limit: timedelta
    after: tuple[str, ...]
    remote: bool
    mounts: tuple[Mount, ...]
    target: str
    remarks: tuple[str, ...] = ()
    library_path: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class InstalledUnit:
    """What an installed unit was made for, which the next install keeps; nothing where there is none.

    ``gpus`` are the settings of the enabled instances: ``0``, or ``0,1`` for one engine over both.
    """

    account: str | None = None
    worker_arguments: tuple[str, ...] = ()
    one_per_gpu: bool = False
    gpus: tuple[str, ...] = ()
    library_path: str | None = None


def render(spec: UnitSpec) -> str:
    """Return the unit file: a header that seals what follows, then the three sections."""
    title = f"{TEMPLATE}: one vbatch worker{' per GPU' if spec.one_per_gpu else ''}, kept running."
    return sealed(
        spec, title, unit=_unit(spec), service=[*_service(spec), *_directories(spec)], remarks=spec.remarks
    )


def sealed(
    spec: UnitSpec,
    title: str,
    *,
    unit: Iterable[Key | str],
    service: Iterable[Key | str],
    remarks: Iterable[str] = (),
) -> str:
    """Return a unit file of these sections, confined where it is the system's."""
    body = "\n".join(
        [
            f"# {title}",
            f"# Written by vbatch {__version__}. Change it by `systemctl edit`: a drop-in survives updates.",
            *(f"# {remark}" for remark in remarks),
            "",
            "[Unit]",
            *lines(unit),
            "",
            "[Service]",
            *lines(service),
            *(lines(sandbox(spec)) if spec.scope is Scope.SYSTEM else []),
            "",
            "[Install]",
            f"WantedBy={spec.target}",
            "",
        ]
    )
    return units.seal(body)


def read(unit: str, enabled: Sequence[str]) -> InstalledUnit:
    """Read the unit's text, and the names of its enabled instances."""
    account, worker, libraries = _ACCOUNT.search(unit), _WORKER.search(unit), _LIBRARIES.search(unit)
    one_per_gpu = _GPU.search(unit) is not None
    numbers = (_NUMBERED.fullmatch(name) for name in enabled)
    found = [gpu_setting.of_unit(number[1]) for number in numbers if number]
    return InstalledUnit(
        account=account[1] if account else None,
        worker_arguments=tuple(words(worker[1])) if worker and worker[1] else (),
        one_per_gpu=one_per_gpu,
        gpus=tuple(sorted(found, key=gpu_setting.numbers)) if one_per_gpu else (),
        library_path=words(libraries[1])[0].partition("=")[2] if libraries else None,
    )


def _unit(spec: UnitSpec) -> Iterator[Key | str]:
    yield "Description", "vbatch worker" + (" on GPU %i" if spec.one_per_gpu else "")
    yield from order(spec, "nvidia-persistenced.service")


def order(spec: UnitSpec, *before: str) -> Iterator[Key | str]:
    """Yield after what a unit starts, and that it is started without end."""
    if spec.scope is Scope.SYSTEM:
        yield "# Order only; nothing is required. What starts waits for what it needs, as long as it takes."
        if spec.remote:
            yield "Wants", "network-online.target"
        network = "network-online.target" if spec.remote else "network.target"
        yield "After", " ".join(map(word, (network, *before, *spec.after)))
        if spec.mounts:
            disks = " ".join(mount.unit for mount in spec.mounts)
            yield "Wants", disks
            yield "After", disks
    yield "# No burst limit: a database that is late must not end in a permanent failure."
    yield "StartLimitIntervalSec", "0"


def _service(spec: UnitSpec) -> Iterator[Key | str]:
    vbatch = program(spec)
    yield "Type", "notify"
    yield from account(spec)
    if spec.one_per_gpu:
        yield "# Doctor and the worker look at the same GPU."
        yield "Environment", "VBATCH_GPU=%i"
    yield from environment(spec)
    if spec.modprobe and spec.scope is Scope.SYSTEM:
        yield "# Loads the modules and makes the device nodes, which at boot only root can do."
        for tool, *arguments in spec.modprobe:
            yield "ExecStartPre", command("-+", tool, *arguments)
    yield "# Fixes what is provably vbatch's and reports the rest; whether to start is the worker's own decision."
    yield "ExecStartPre", command("-", *vbatch, *_DOCTOR, "--wait", span(PATIENCE))
    yield "ExecStart", command("", *vbatch, "run-worker", *spec.worker_arguments)
    yield "ExecStopPost", command("-", *vbatch, "doctor", "gpu", "queue", "--fix", "--yes")
    yield from restarts(spec, ExitCode.USAGE, ExitCode.MISCONFIGURED)
    yield "# The worker drains alone; what is left of its engine after that is ended before any restart."
    yield "KillMode", "mixed"
    yield "TimeoutStopSec", span(spec.drain_limit + AFTER_DRAIN)
    yield "TimeoutAbortSec", span(timedelta(seconds=30))
    yield "TimeoutStartSec", span(START_LIMIT)
    yield "# Reset only by progress: a hung worker is restarted."
    yield "WatchdogSec", span(WATCHDOG)
    yield "# An engine that the kernel ends for lack of memory is reported and reloaded by the worker."
    yield "OOMPolicy", "continue"
    yield "SyslogIdentifier", "vbatch"
    yield "LimitNOFILE", "65536"
    yield "# A core dump would hold prompts, and all of the GPU's mappings."
    yield "LimitCORE", "0"


def program(spec: UnitSpec) -> tuple[str, ...]:
    """Return how a unit calls vbatch."""
    vbatch = (spec.python, "-P", "-m", "vbatch")
    # Not in the environment of the unit: root's own commands would load what lies there.
    return (_ENV, f"{LIBRARY_PATH}={spec.library_path}", *vbatch) if spec.library_path else vbatch


def account(spec: UnitSpec) -> Iterator[Key | str]:
    """Yield whose process it is."""
    if spec.scope is Scope.SYSTEM:
        yield "User", spec.account.name
        yield "WorkingDirectory", "-~" if spec.account.has_home else "-%S/vbatch"


def environment(spec: UnitSpec) -> Iterator[Key | str]:
    """Yield its variables, and the disks without which it does not start."""
    yield "Environment", word(f"PATH={spec.search_path}")
    yield "EnvironmentFile", "-" + path(str(spec.environment_file))
    if spec.mounts:
        yield "# A disk that is late is tried again; RequiresMountsFor= would give up for good."
        for mount in spec.mounts:
            prefix = "+" if spec.scope is Scope.SYSTEM else ""
            yield "ExecStartPre", command(prefix, machine.mount_check(), mount.point)


def restarts(spec: UnitSpec, *final: ExitCode) -> Iterator[Key | str]:
    """Yield when it is started again: after any failure but these."""
    yield "Restart", "on-failure"
    yield "# What only a person can fix is not tried again: wrong settings, wrong usage."
    yield "RestartPreventExitStatus", " ".join(str(int(code)) for code in final)
    if spec.systemd >= GROWING_DELAYS:
        yield "RestartSec", span(FIRST_DELAY)
        yield "RestartSteps", str(DELAY_STEPS)
        yield "RestartMaxDelaySec", span(LONGEST_DELAY)
    else:
        yield "RestartSec", span(ONLY_DELAY)


def _directories(spec: UnitSpec) -> Iterator[Key | str]:
    yield "# vLLM's sockets: gone with the worker, however it ends."
    yield "RuntimeDirectory", f"{_RUNTIME}-%i"
    yield "RuntimeDirectoryMode", "0700"
    yield "Environment", f"VLLM_RPC_BASE_PATH=%t/{_RUNTIME}-%i"
    yield from home(spec)


def home(spec: UnitSpec) -> Iterator[Key | str]:
    """Yield the home of an account that has none."""
    if spec.scope is Scope.SYSTEM and not spec.account.has_home:
        yield "# The account has no home of its own: this is one."
        yield "StateDirectory", "vbatch"
        yield "StateDirectoryMode", "0700"
        yield "Environment", "HOME=%S/vbatch"


_RUNTIME = "vbatch-worker"


def sandbox(spec: UnitSpec) -> Iterator[Key | str]:
    """Yield what the machine's service gives up."""
    yield "# What neither CUDA, nor a JIT compiler, nor a batch needs."
    yield from SANDBOX
    yield "CapabilityBoundingSet", CAPABILITIES_OF_ROOT if spec.account.uid == 0 else ""


def lines(keys: Iterable[Key | str]) -> list[str]:
    """Return the lines of these keys and comments."""
    return [entry if isinstance(entry, str) else f"{entry[0]}={entry[1]}" for entry in keys]


def span(duration: timedelta) -> str:
    """Write a duration as systemd.time(7) reads it."""
    seconds = round(duration.total_seconds())
    return f"{seconds // 60}min" if seconds % 60 == 0 else f"{seconds}s"
