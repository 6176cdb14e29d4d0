"""Checks of the NVIDIA driver: whether it answers at all, and how each GPU is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from vbatch import gpu as nvml
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Check, Entry, Finding, Level
from vbatch.engine import installed
from vbatch.gpu import POWER_LIMIT, Gpu, Trouble
from vbatch.system import wsl

PCI = Path("/sys/bus/pci/devices")
NVIDIA = "0x10de"  # its number as a maker of PCI devices

DRIVER = Entry(id="gpu.driver", means="the driver answers, and every GPU does")
NONE = Entry(
    id="gpu.none",
    means="there is no NVIDIA GPU here and vLLM is not the GPU build, as on a laptop, a server or CI",
    advice="nothing to do if this machine has no GPU",
)
NO_NVML = Entry(
    id="gpu.unmanaged",
    means="this vLLM computes on a GPU whose driver does not report to NVML: vbatch does not see its memory, its "
    "processes or its health, and refuses nothing for it; a load that lacks memory fails in vLLM's words",
    advice="nothing to do; vbatch's GPU checks are for NVIDIA's cards, and --gpu works with CUDA_VISIBLE_DEVICES only "
    "(Intel: ZE_AFFINITY_MASK)",
)
# By what the driver answers; two answers may have one entry.
TROUBLES = {
    "no_gpu": Entry(
        id="gpu.not_found",
        means="the driver works and lists no GPU: it may still be starting, the card is not seated well, or a virtual "
        "machine was given none",
        commands=("lspci -d 10de:", "nvidia-smi -L"),
        advice="after a boot it may only need time: vbatch doctor gpu --wait 60s",
    ),
    "library_missing": Entry(
        id="gpu.library",
        means="without the driver's library (libnvidia-ml.so.1) no program can use the GPU: no driver is installed, "
        "or a container got none",
        commands=("nvidia-smi", "sudo ubuntu-drivers install"),
        advice="a container needs --gpus all",
    ),
    "driver_not_loaded": Entry(
        id="gpu.not_loaded",
        means="the driver is installed, but its kernel module is not loaded; no program can use the GPU before it is",
        commands=("sudo modprobe nvidia",),
        advice="after a kernel update, reinstall the driver so that its module is built again",
    ),
    "mismatch": Entry(
        id="gpu.mismatch",
        means="the driver was updated while it ran: its library and its kernel module have different versions",
        commands=("sudo reboot",),
    ),
    "lost": Entry(
        id="gpu.lost",
        means="the GPU no longer answers on its bus: power, heat, seating or a defect",
        commands=("sudo poweroff",),
        advice="wait a minute before you start it again; look for Xid 79 in the kernel log",
    ),
    "reset_required": Entry(
        id="gpu.reset",
        means="the GPU must be reset before it can be used",
        commands=("sudo reboot",),
    ),
    "no_permission": Entry(
        id="gpu.permission",
        means="the device files of the GPU belong to a group that this user is not in",
        commands=("ls -l /dev/nvidia*", "sudo usermod -aG video,render $USER   # then log in again"),
    ),
    "hanging": Entry(
        id="gpu.hanging",
        means="the driver does not answer, and programs that use the GPU hang with it; unfinished requests continue "
        "after a reboot",
        commands=("sudo reboot",),
    ),
    "crashed": Entry(
        id="gpu.crashed",
        means="the driver's library crashed, or the driver reported an error that vbatch does not know",
        commands=("nvidia-smi",),
        advice="reinstall the driver",
    ),
}
HEALTH = Entry(id="gpu.health", means="no GPU is slowed down or has memory errors")
COMPUTE_MODE = Entry(
    id="gpu.compute_mode",
    means="the GPU admits no program, or only one process, which vLLM's own processes exceed",
    commands=("sudo nvidia-smi -i {gpu} -c DEFAULT",),
)
THROTTLED = Entry(
    id="gpu.throttled",
    means="the GPU slows itself down because of heat or power, and a batch takes longer; at its power limit alone it "
    "is only busy",
    commands=("nvidia-smi -i {gpu} -q -d PERFORMANCE",),
    advice="check fans, dust and the power supply",
)
ECC = Entry(
    id="gpu.ecc",
    means="the memory of the GPU had errors that could not be corrected: answers may be wrong, and an engine may crash",
    commands=("nvidia-smi -i {gpu} -q -d ECC,ROW_REMAPPER",),
    advice="reboot; if it happens again, have the card examined",
)
XID = Entry(
    id="gpu.xid",
    means="the driver has logged an error (Xid) since the boot; a batch that failed then may have failed because of it",
    commands=("journalctl -k -g Xid",),
    advice="79 and 119 need a reboot, 13 and 31 are a program's fault",
)
PERSISTENCE = Entry(
    id="gpu.persistence",
    means="the driver releases the GPU when no program uses it, and each start of an engine takes some seconds longer",
    commands=("sudo systemctl enable --now nvidia-persistenced",),
)


def _driver(facts: Facts) -> Iterator[Finding]:
    """Ask the driver; where there is none and none is needed, say so and skip the rest."""
    if facts.without_nvml is not None:
        yield NO_NVML.info(f"vLLM computes on {facts.without_nvml}; the memory of the GPU is unknown")
        return
    report = facts.gpu
    if report.trouble is not None:
        if report.trouble.code == "library_missing" and not facts.needs_gpu:
            yield NONE.skip("no NVIDIA driver here, and vLLM is not its GPU build: nothing to check")
        else:
            yield _trouble(report.trouble, "the GPU")
        return
    for number, trouble in report.lost:
        yield _trouble(trouble, f"GPU {number}")
    for card in report.gpus:
        memory = f"{card.total / 2**30:.2f} GiB" if card.memory_known else "memory unknown"
        yield DRIVER.ok(f"GPU {card.index}: {card.name}, {memory}, driver {report.driver or 'unknown'}")
    if not report.gpus and not report.lost and facts.needs_gpu:
        yield _trouble(Trouble(code="no_gpu", message="the driver lists none"), "the GPU")
    elif not report.gpus and not report.lost:
        yield NONE.skip("the driver lists no GPU")


def _trouble(trouble: Trouble, what: str) -> Finding:
    entry = TROUBLES["crashed" if trouble.code == "other" else trouble.code]
    words = f"{what} cannot be used: {trouble.message}"
    if trouble.code == "library_missing":
        return entry.fail(words, commands=("nvidia-smi", *update_commands()))
    return entry.fail(words, passing=trouble.passing)


def update_commands() -> tuple[str, ...]:
    """Return how a person installs or updates the driver here: not with a package where it is not Linux' own."""
    if wsl.is_wsl():
        return (
            "nvidia-smi.exe   # WSL2 uses the driver of Windows: install or update it there, not in Linux",
        )
    if installed.JETSON.exists():
        return ("cat /etc/nv_tegra_release   # the driver is part of JetPack: update that",)
    if not _has_card():
        return ("lspci   # no NVIDIA card is on the PCI bus, and this vLLM is its build for NVIDIA",)
    return ("sudo ubuntu-drivers install",)


def _has_card() -> bool:
    """Whether there is a PCI device of NVIDIA; True where that cannot be seen."""
    vendors = []
    for path in PCI.glob("*/vendor"):
        with suppress(OSError):
            vendors.append(path.read_text().strip())
    return not vendors or NVIDIA in vendors


def _health(facts: Facts) -> Iterator[Finding]:
    """Look for what slows a GPU down or is about to break."""
    cards = facts.gpu.gpus
    found = [finding for card in cards for finding in _of_one(card)]
    yield from found
    errors = nvml.xid_errors()
    for xid in errors or ():
        yield XID.warn(f"the driver reported Xid {xid.code}: {xid.meaning}", evidence=(xid.text,))
    if cards and not errors and not any(each.level in (Level.WARN, Level.FAIL) for each in found):
        temperatures = [card.temperature for card in cards if card.temperature is not None]
        heat = f" at {max(temperatures)} °C" if temperatures else ""
        unread = () if errors is not None else ("the kernel log, which may hold errors, cannot be read",)
        yield HEALTH.ok(f"no throttling, no memory errors{heat}", *unread)


def _of_one(card: Gpu) -> Iterator[Finding]:
    values = {"gpu": card.index}
    if card.compute_mode in ("prohibited", "exclusive_process"):
        yield COMPUTE_MODE.found(
            Level.FAIL if card.compute_mode == "prohibited" else Level.WARN,
            f"GPU {card.index} is in compute mode {card.compute_mode}",
            values=values,
        )
    if card.throttle == (POWER_LIMIT,):
        yield THROTTLED.info(
            f"GPU {card.index} is at its {POWER_LIMIT}",
            why="as under full load; this is no fault",
            values=values,
        )
    elif card.throttle:
        heat = f" at {card.temperature} °C" if card.temperature is not None else ""
        what = f"GPU {card.index} is slowed down{heat}: {', '.join(card.throttle)}"
        yield THROTTLED.warn(what, values=values)
    if card.ecc_uncorrected or card.retirement_pending:
        errors = f"had {card.ecc_uncorrected or 0} memory errors that could not be corrected"
        pending = ", and waits for a reset to retire the cells" if card.retirement_pending else ""
        yield ECC.warn(f"GPU {card.index} {errors}{pending}", values=values)
    if card.persistence_mode is False:
        yield PERSISTENCE.info(f"GPU {card.index}: persistence mode is off")


CHECKS = (
    Check(
        name="gpu.driver",
        finds=(DRIVER, NONE, NO_NVML, *TROUBLES.values()),
        run=_driver,
        provides="the driver",
    ),
    Check(
        name="gpu.health",
        finds=(HEALTH, COMPUTE_MODE, THROTTLED, ECC, XID, PERSISTENCE),
        run=_health,
        needs=("gpu.driver",),
    ),
)
