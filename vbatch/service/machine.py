"""This machine as the unit needs it: its GPUs, and the disks that the service's folders are on.

The GPUs are counted without the driver library, which may be missing or wedged when this is asked. Which of several
drive a display is asked of it, in a child process with a limit.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from vbatch import gpu
from vbatch.config import gpu_setting
from vbatch.errors import UsageError
from vbatch.system import disks
from vbatch.system.systemd import Systemd

NVIDIA = Path("/proc/driver/nvidia/gpus")  # one folder per GPU, named by PCI address
CONTROL = 255  # the minor number of /dev/nvidiactl: NV_CTL_DEVICE_NUM of nvidia-modprobe-utils.h
WSL = Path("/dev/dxg")  # Windows' own driver: one device for whatever is there

# Where programs are that root runs at each boot: not in the PATH of whoever installs, which may be a person's own.
SEARCH_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Chosen:
    """The setting ``gpu`` of each unit: ``0``, or ``0,1`` for one engine. ``with_display`` are left out for that."""

    settings: tuple[str, ...] = ()
    with_display: tuple[int, ...] = ()

    @property
    def numbers(self) -> tuple[int, ...]:
        """The numbers of all GPUs that get a worker."""
        return tuple(number for setting in self.settings for number in gpu_setting.numbers(setting))


def chosen(wanted: Sequence[str]) -> Chosen:
    """Read what was asked for; ``all`` is a unit per GPU. Raises UsageError for what is no GPU, or is named twice."""
    found: list[str] = []
    with_display: tuple[int, ...] = ()
    for given in wanted:
        try:
            setting = str(gpu_setting.normalised(given))
        except ValueError as error:
            raise UsageError(f"--gpu: {error}") from None
        if setting == gpu_setting.ALL:
            every = each()
            found += every.settings
            with_display = every.with_display
        else:
            found.append(setting)
    ordered = sorted(dict.fromkeys(found), key=gpu_setting.numbers)
    result = Chosen(settings=tuple(ordered), with_display=with_display)
    twice = next((number for number in result.numbers if result.numbers.count(number) > 1), None)
    if twice is not None:
        users = " and ".join(
            f"--gpu {setting}" for setting in ordered if twice in gpu_setting.numbers(setting)
        )
        raise UsageError(f"GPU {twice} would have two workers: {users}")
    named = [number for number in with_display if number not in result.numbers]
    return replace(result, with_display=tuple(named))


def each() -> Chosen:
    """Return a unit for each GPU; one that drives a display gets none, where the driver names it and others do not."""
    there = gpus()
    displays = {card.index for card in gpu.probe().gpus if card.drives_display} if len(there) > 1 else set()
    left = tuple(number for number in there if number not in displays) or there
    return Chosen(
        settings=tuple(map(str, left)), with_display=tuple(number for number in there if number not in left)
    )


def modprobe(wanted: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return the commands that make the device nodes of these GPUs: none without a GPU or the program.

    ``-u`` loads nvidia-uvm and makes its node alone; the driver's own nodes take a call without it. A GPU's
    node may have another number than the GPU: all that there are are made.
    """
    program = shutil.which("nvidia-modprobe", path=SEARCH_PATH)
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
    return shutil.which("mountpoint", path=SEARCH_PATH) or "/usr/bin/mountpoint"
