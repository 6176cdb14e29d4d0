"""This machine's GPUs, without the driver library, which may be missing or wedged when this is asked."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

NVIDIA = Path("/proc/driver/nvidia/gpus")  # one folder a GPU, named by PCI address
CONTROL = 255  # the minor number of /dev/nvidiactl: NV_CTL_DEVICE_NUM of nvidia-modprobe-utils.h
WSL = Path("/dev/dxg")  # Windows' own driver: one device for whatever is there


def present() -> tuple[int, ...]:
    """Return the numbers of the GPUs, which the driver gives in the order of PCI addresses."""
    if NVIDIA.is_dir():
        return tuple(range(len(list(NVIDIA.iterdir()))))
    return (0,) if WSL.exists() else ()


def modprobe(gpus: Sequence[int]) -> tuple[tuple[str, ...], ...]:
    """Return the commands that make the device nodes of these GPUs: none without a GPU or the program.

    ``-u`` loads nvidia-uvm and makes its node alone; the driver's own nodes take a call without it. A GPU's
    node may have another number than the GPU: all that there are are made.
    """
    program = shutil.which("nvidia-modprobe")
    if program is None or not gpus:
        return ()
    minors = (CONTROL, *range(max(len(present()), max(gpus) + 1)))
    return (program, *(part for minor in minors for part in ("-c", str(minor)))), (program, "-u", "-c", "0")
