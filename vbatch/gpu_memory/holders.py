"""Who holds a GPU's memory: each holder's kind, and the polite command to stop it. Ends no process."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from enum import StrEnum

from vbatch.gpu import Gpu
from vbatch.recovery.orphans import Suspect, Verdict
from vbatch.system import processes
from vbatch.system.processes import Description
from vbatch.text import MIB, one_line, size

# bytes that the driver and the CUDA contexts of listed processes take beyond what NVML reports for them
OVERHEAD = 700 * MIB

# The titles of engine processes: of vLLM's own server, and of vbatch (VLLM_PROCESS_NAME_PREFIX).
_ENGINE_TITLE = re.compile(r"(?:VLLM|vbatch-[0-9a-f]+)::")

# Programs that draw the desktop: never proposed to be ended, because that would close all that a person has open.
_DESKTOP = re.compile(
    r"Xorg|X|Xwayland|gnome-shell|mutter|kwin_\w+|plasmashell|sway|Hyprland|weston|cinnamon|xfwm4|"
    r"ly|greetd|display-manager|(gdm|sddm|lightdm|lxdm|xdm).*"
)
_SERVICE = re.compile(r"/([^/]+)\.service(?:/|$)")
_USER_MANAGER = re.compile(r"/user@(\d+)\.service/")
_CONTAINER = re.compile(r"(?:(docker|libpod)-|/(docker)/)([0-9a-f]{12,64})")


class Kind(StrEnum):
    """What a holder is, which decides who may end it and how."""

    ORPHAN = "orphan"  # an engine left behind by a dead worker: doctor may end it
    WORKER = "worker"  # an engine of a running vbatch worker
    FOREIGN_ENGINE = "foreign_engine"  # a vLLM engine that was left behind, but not by vbatch
    UNPROVEN = "unproven"  # perhaps vbatch's engine: the ledger cannot be read, or it alone names the process
    PROCESS = "process"  # a running program of a user
    DEFUNCT = "defunct"  # it has ended, but its parent has not collected it
    UNKILLABLE = "unkillable"  # SIGKILL was sent, but it waits inside the kernel
    HIDDEN = "hidden"  # not visible from here: in another container, or of another user


@dataclass(frozen=True, slots=True, kw_only=True)
class Holder:
    """A process that holds memory of a GPU. ``used`` is in bytes, None if the driver does not report it.

    ``who`` names it so that its owner recognises it; ``remedies`` are commands to paste, the politest first.
    """

    pid: int
    used: int | None
    kind: Kind
    who: str
    remedies: tuple[str, ...]

    @property
    def summary(self) -> str:
        """How much it holds, as far as that is known, and who it is."""
        return self.who if self.used is None else f"{size(self.used)} by {self.who}"


def holders(gpu: Gpu, suspects: Collection[Suspect] | None) -> list[Holder]:
    """Return who holds memory of this GPU, the biggest first.

    ``suspects`` come from the ledger, None if it cannot be read. In a container the driver reports the host's pids, and
    the same number is another process there.
    """
    if not processes.among_all():
        found = [_hidden(listed.pid, listed.used) for listed in gpu.holders]
    else:
        verdicts = {suspect.process.identity.pid: suspect.verdict for suspect in suspects or ()}
        found = [
            _holder(listed.pid, listed.used, verdicts.get(listed.pid), ledger=suspects is not None)
            for listed in gpu.holders
        ]
    return sorted(found, key=lambda holder: -(holder.used or 0))


def unproven(suspects: Collection[Suspect]) -> list[Holder]:
    """Return the running processes that only the ledger calls engines, whether or not they hold memory."""
    described = [
        (suspect.process.identity.pid, processes.describe(suspect.process.identity.pid))
        for suspect in suspects
        if suspect.verdict in (Verdict.UNPROVEN, Verdict.OF_ANOTHER_USER)
    ]
    return [
        Holder(
            pid=pid,
            used=None,
            kind=Kind.UNPROVEN,
            who=_name(description),
            remedies=tuple(_polite_stop(description)),
        )
        for pid, description in described
        if description is not None
    ]


def unlisted(gpu: Gpu) -> int:
    """Return the bytes that are in use but held by no listed process; 0 if that cannot be known."""
    known = [listed.used for listed in gpu.holders if listed.used is not None]
    if len(known) < len(gpu.holders) or not gpu.memory_known:
        return 0
    surplus = gpu.used - sum(known)
    return surplus if surplus > OVERHEAD else 0


def _hidden(pid: int, used: int | None) -> Holder:
    return Holder(
        pid=pid,
        used=used,
        kind=Kind.HIDDEN,
        who=f"process {pid}, which cannot be seen from here (another container or another user)",
        remedies=("nvidia-smi   # on the host, as root",),
    )


def _holder(pid: int, used: int | None, verdict: Verdict | None, *, ledger: bool) -> Holder:
    description = processes.describe(pid)
    if description is None:
        return _hidden(pid, used)
    kind = _kind(description, verdict)
    unproven = not ledger or verdict is Verdict.UNPROVEN
    if unproven and kind in (Kind.FOREIGN_ENGINE, Kind.PROCESS) and _is_engine(description):
        kind = Kind.UNPROVEN
    return Holder(
        pid=pid,
        used=used,
        kind=kind,
        who=_name(description),
        remedies=tuple(_remedies(description, kind, ledger=ledger)),
    )


def _kind(description: Description, verdict: Verdict | None) -> Kind:
    if description.state == "zombie":
        return Kind.DEFUNCT
    if processes.is_condemned(description.pid):
        return Kind.UNKILLABLE
    match verdict:
        case Verdict.ORPHAN:
            return Kind.ORPHAN
        case Verdict.WORKER_LIVES | Verdict.BELOW_A_WORKER:
            return Kind.WORKER
    above = processes.ancestors(description.pid)
    left_behind = above is not None and (above[:1] == [1] or any(map(_is_reaper, above[:1])))
    return Kind.FOREIGN_ENGINE if left_behind and _is_engine(description) else Kind.PROCESS


def _is_engine(description: Description) -> bool:
    return _ENGINE_TITLE.match(description.title) is not None


_REAPERS = ("init", "systemd", "tini", "dumb-init", "catatonit", "docker-init")


def _is_reaper(pid: int) -> bool:
    """Whether it is a process that orphans get as their parent: an init, or a user's service manager."""
    reaper = processes.describe(pid)
    return reaper is not None and reaper.name in _REAPERS


def _name(description: Description) -> str:
    """Return the name of a process for people: title, pid, user, and its service or container."""
    place = ""
    if (container := _CONTAINER.search(description.cgroup or "")) is not None:
        place = f", container {container[3][:12]}"
    elif (service := _service(description)) is not None:
        place = f", service {service}"
    return f"{one_line(description.title, limit=60)} (pid {description.pid}, user {description.user}{place})"


def _service(description: Description) -> str | None:
    """Return the systemd service that it runs in; a user's own session does not count as one."""
    services = _SERVICE.findall(description.cgroup or "")
    return next((name for name in reversed(services) if not name.startswith("user@")), None)


def _remedies(description: Description, kind: Kind, *, ledger: bool) -> Iterator[str]:
    pid = description.pid
    match kind:
        case Kind.ORPHAN:
            yield "vbatch doctor --fix"
        case Kind.WORKER:
            yield "vbatch list   # its worker is running: leave it alone, or stop that worker"
        case Kind.UNPROVEN if not ledger:
            yield "vbatch doctor store --wait 60s   # then: vbatch doctor --fix"
        case Kind.DEFUNCT:
            parent = next(iter(processes.ancestors(pid) or ()), 1)
            yield f"ps -o pid,user,args {parent}   # its parent; the memory is freed when the parent ends"
        case Kind.UNKILLABLE:
            yield "sudo reboot   # it waits inside the driver; nothing else ends it"
        case _:
            yield from _polite_stop(description)


def _polite_stop(description: Description) -> Iterator[str]:
    container = _CONTAINER.search(description.cgroup or "")
    service = _service(description)
    if any(_DESKTOP.fullmatch(name) for name in (description.name, service or "")):
        return
    if container is not None:
        yield f"{'podman' if container[1] == 'libpod' else 'docker'} stop {container[3][:12]}"
    elif service is not None and _USER_MANAGER.search(description.cgroup or ""):
        yield f"systemctl --user stop {service}   # as {description.user}"
    elif service is not None:
        yield f"sudo systemctl stop {service}"
    else:
        sudo = "" if os.geteuid() in (0, processes.owner(description.pid)) else "sudo "
        yield f"{sudo}kill {description.pid}   # only if you may end it: it belongs to {description.user}"
