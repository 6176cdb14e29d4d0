"""This machine as the unit needs it: its GPUs, and the disks that the service's folders are on.

The GPUs are counted without the driver library, which may be missing or wedged when this is asked.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from vbatch.system import disks
from vbatch.system.systemd import Systemd

NVIDIA = Path("/proc/driver/nvidia/gpus")  # one folder per GPU, named by PCI address
CONTROL = 255  # the minor number of /dev/nvidiactl: NV_CTL_DEVICE_NUM of nvidia-modprobe-utils.h
WSL = Path("/dev/dxg")  # Windows' own driver: one device for whatever is there


@dataclass(frozen=True, slots=True, kw_only=True)
class Mount:
    """A mount point, and the name that systemd has for it."""

    point: str
    unit: str


def gpus() -> tuple[int, ...]:
    """Return the numbers of the GPUs, which the driver gives in the order of PCI addresses."""
    if NVIDIA.is_dir():
        return tuple(range(len(list(NVIDIA.iterdir()))))
    return (0,) if WSL.exists() else ()


def modprobe(wanted: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return the commands that make the device nodes of these GPUs: none without a GPU or the program.

    ``-u`` loads nvidia-uvm and makes its node alone; the driver's own nodes take a call without it. A GPU's
    node may have another number than the GPU: all that there are are made.
    """
    program = shutil.which("nvidia-modprobe")
    if program is None or not wanted:
        return ()
    minors = (CONTROL, *range(max(len(gpus()), max(wanted) + 1)))
    return (program, *(part for minor in minors for part in ("-c", str(minor)))), (program, "-u", "-c", "0")


def mounts_of(folders: Iterable[str], systemd: Systemd) -> tuple[Mount, ...]:
    """Return the mounts that these folders are on, but for the root's."""
    points = dict.fromkeys(disks.mount_of(Path(folder)).place for folder in folders)
    return tuple(
        Mount(point=str(point), unit=systemd.mount_unit(point)) for point in points if point != Path("/")
    )


def mount_check() -> str:
    """Return the program (of util-linux) that says whether a folder is a mount point."""
    return shutil.which("mountpoint") or "/usr/bin/mountpoint"
