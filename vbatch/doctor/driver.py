"""Checks of the NVIDIA driver: whether it can be asked at all, and how each GPU is."""

from __future__ import annotations

from collections.abc import Iterator

from vbatch import gpu as nvml
from vbatch.doctor.catalogue import Meaning
from vbatch.doctor.checks import Check, Group
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level, info, ok, skip
from vbatch.errors import ExitCode
from vbatch.gpu import POWER_LIMIT, Gpu, Trouble

MEANINGS = {
    "gpu.driver": Meaning(means="The driver answers, and every GPU does.", remedy="Nothing to do."),
    "gpu.none": Meaning(
        means="There is no NVIDIA driver here, and vLLM is not the build for GPUs: a laptop, a server, CI.",
        remedy="Nothing to do, if there is no GPU in this machine.",
    ),
    "gpu.not_found": Meaning(
        means="The driver answers and knows no GPU, and vLLM is the build for GPUs: its devices are not there yet, "
        "it is not seated well, or a virtual machine was given none.",
        remedy="lspci -d 10de: shows what is plugged in; after a boot it may only need time: --wait 60s.",
    ),
    "gpu.library": Meaning(
        means="The driver's library (libnvidia-ml.so.1) is not there: no driver is installed, or a container got none.",
        remedy="Install the driver (sudo ubuntu-drivers install), or give the container the GPU (--gpus all).",
    ),
    "gpu.not_loaded": Meaning(
        means="The driver is installed but its kernel module is not loaded.",
        remedy="sudo modprobe nvidia. After a kernel update, reinstall the driver so that the module is built again.",
    ),
    "gpu.mismatch": Meaning(
        means="The driver was updated while it ran: its library and its kernel module have different versions.",
        remedy="Reboot.",
    ),
    "gpu.lost": Meaning(
        means="The GPU does not answer on its bus any more: power, heat, seating, or a defect.",
        remedy="Shut down, wait a minute, start again; look for Xid 79 in the kernel log.",
    ),
    "gpu.reset": Meaning(
        means="The GPU must be reset before it can be used.", remedy="Reboot, or sudo nvidia-smi --gpu-reset."
    ),
    "gpu.permission": Meaning(
        means="This user may not use the GPU's device files.", remedy="sudo usermod -aG video,render USER"
    ),
    "gpu.hanging": Meaning(
        means="The driver does not answer: it is wedged. Programs that use the GPU hang with it.",
        remedy="Reboot. Nothing is lost: unfinished requests go on afterwards.",
    ),
    "gpu.crashed": Meaning(
        means="The driver's library crashed when it was asked, or a check met something that it does not know.",
        remedy="Reinstall the driver; the report of vbatch doctor --report helps to find out more.",
    ),
    "gpu.health": Meaning(
        means="No GPU is slowed down, closed, or short of sound memory.", remedy="Nothing to do."
    ),
    "gpu.compute_mode": Meaning(
        means="The GPU is closed for computing, or open to one process only, which vLLM's own processes exceed.",
        remedy="sudo nvidia-smi -c DEFAULT",
    ),
    "gpu.throttled": Meaning(
        means="The GPU slows itself down, for heat or for want of power; at its power limit alone it is only busy.",
        remedy="Look at fans, dust and the power supply; nvidia-smi -q -d PERFORMANCE names the reason.",
    ),
    "gpu.ecc": Meaning(
        means="The GPU's memory had errors that could not be corrected, or waits for a reset to mend itself.",
        remedy="Reboot; if it comes back, have the card looked at.",
    ),
    "gpu.xid": Meaning(
        means="The driver has written an error (Xid) into the kernel log since the boot.",
        remedy="The number says what it was; 79 and 119 need a reboot, 13 and 31 are a program's fault.",
    ),
    "gpu.persistence": Meaning(
        means="The driver lets go of the GPU when nobody uses it; each start then takes seconds longer.",
        remedy="sudo systemctl enable --now nvidia-persistenced",
    ),
}

_TROUBLES: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "library_missing": (
        "gpu.library",
        "without it no program can use the GPU",
        ("nvidia-smi", "sudo ubuntu-drivers install"),
    ),
    "driver_not_loaded": (
        "gpu.not_loaded",
        "no program can use the GPU before it is",
        ("sudo modprobe nvidia",),
    ),
    "mismatch": ("gpu.mismatch", "the driver was updated while it ran", ("sudo reboot",)),
    "lost": ("gpu.lost", "it fell off its bus: power, heat, seating or a defect", ("sudo poweroff",)),
    "reset_required": ("gpu.reset", "it cannot be used before that", ("sudo reboot",)),
    "no_permission": (
        "gpu.permission",
        "the device files belong to a group that this user is not in",
        ("ls -l /dev/nvidia*", "sudo usermod -aG video,render $USER   # then log in again"),
    ),
    "hanging": ("gpu.hanging", "it is wedged; whatever uses the GPU hangs with it", ("sudo reboot",)),
    "crashed": ("gpu.crashed", "the driver's library is broken", ("nvidia-smi",)),
    "no_gpu": (
        "gpu.not_found",
        "it may still be starting; else look whether the machine sees it at all",
        ("lspci -d 10de:", "nvidia-smi -L"),
    ),
    "other": ("gpu.crashed", "the driver said something that vbatch does not know", ("nvidia-smi",)),
}


def _driver(facts: Facts) -> Iterator[Finding]:
    """Ask the driver; where there is none and none is needed, say so and leave it at that."""
    report = facts.gpu
    if report.trouble is not None:
        if report.trouble.code == "library_missing" and not facts.needs_gpu:
            yield skip("gpu.none", "no NVIDIA driver here, and vLLM is not its GPU build: nothing to check")
        else:
            yield _trouble(report.trouble, "the GPU")
        return
    for number, trouble in report.lost:
        yield _trouble(trouble, f"GPU {number}")
    for card in report.gpus:
        memory = f"{card.total / 2**30:.2f} GiB" if card.memory_known else "memory unknown"
        yield ok(
            "gpu.driver", f"GPU {card.index}: {card.name}, {memory}, driver {report.driver or 'unknown'}"
        )
    if not report.gpus and not report.lost and facts.needs_gpu:
        yield _trouble(Trouble(code="no_gpu", message="the driver knows none"), "the GPU")
    elif not report.gpus and not report.lost:
        yield skip("gpu.none", "the driver knows no GPU")


def _trouble(trouble: Trouble, what: str) -> Finding:
    finding, why, commands = _TROUBLES[trouble.code]
    return Finding(
        id=finding,
        level=Level.FAIL,
        what=f"{what} cannot be used: {trouble.message}",
        why=why,
        commands=commands,
        passing=trouble.passing,
        exit_code=ExitCode.FAILED,
    )


def _health(facts: Facts) -> Iterator[Finding]:
    """Look at what slows a GPU down or is about to break."""
    healthy = True
    for card in facts.gpu.gpus:
        for finding in _of_one(card):
            healthy &= finding.level not in (Level.WARN, Level.FAIL)
            yield finding
    errors = nvml.xid_errors()
    for xid in errors or ():
        healthy = False
        yield Finding(
            id="gpu.xid",
            level=Level.WARN,
            what=f"the driver reported Xid {xid.code}: {xid.meaning}",
            why="it is in the kernel log since the boot; a batch that failed then may have failed for it",
            evidence=(xid.text,),
            commands=("journalctl -k -g Xid",),
        )
    if healthy and facts.gpu.gpus:
        temperatures = [card.temperature for card in facts.gpu.gpus if card.temperature is not None]
        heat = f" at {max(temperatures)} °C" if temperatures else ""
        unread = (
            () if errors is not None else ("the kernel log, which may tell of errors, cannot be read here",)
        )
        yield ok("gpu.health", f"no throttling, no memory errors{heat}", *unread)


def _of_one(card: Gpu) -> Iterator[Finding]:
    if card.compute_mode in ("prohibited", "exclusive_process"):
        closed = card.compute_mode == "prohibited"
        yield Finding(
            id="gpu.compute_mode",
            level=Level.FAIL if closed else Level.WARN,
            what=f"GPU {card.index} is in compute mode {card.compute_mode}",
            why="no program may compute on it" if closed else "a desktop or a second program keeps vLLM out",
            commands=(f"sudo nvidia-smi -i {card.index} -c DEFAULT",),
        )
    if card.throttle == (POWER_LIMIT,):
        yield info(
            "gpu.throttled", f"GPU {card.index} is at its {POWER_LIMIT}", "as under full load; no fault of it"
        )
    elif card.throttle:
        heat = f" at {card.temperature} °C" if card.temperature is not None else ""
        yield Finding(
            id="gpu.throttled",
            level=Level.WARN,
            what=f"GPU {card.index} is slowed down{heat}: {', '.join(card.throttle)}",
            why="a batch takes longer than it must",
            commands=(f"nvidia-smi -i {card.index} -q -d PERFORMANCE",),
        )
    if card.ecc_uncorrected or card.retirement_pending:
        yield Finding(
            id="gpu.ecc",
            level=Level.WARN,
            what=f"GPU {card.index} had {card.ecc_uncorrected or 0} memory errors that could not be corrected"
            + (", and waits for a reset to retire the cells" if card.retirement_pending else ""),
            why="answers may be wrong, and an engine may die",
            commands=(f"nvidia-smi -i {card.index} -q -d ECC,ROW_REMAPPER",),
        )
    if card.persistence_mode is False:
        yield info(
            "gpu.persistence",
            f"GPU {card.index}: persistence mode is off",
            "each start of an engine takes some seconds longer",
            commands=("sudo systemctl enable --now nvidia-persistenced",),
        )


CHECKS = (
    Check(name="gpu.driver", group=Group.GPU, run=_driver),
    Check(name="gpu.health", group=Group.GPU, run=_health, needs=("gpu.driver",)),
)
