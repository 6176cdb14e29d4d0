"""Count this machine's GPUs without its driver library, which may be missing or wedged when this is asked."""

from __future__ import annotations

from pathlib import Path

NVIDIA = Path("/proc/driver/nvidia/gpus")  # one folder a GPU, named by PCI address
WSL = Path("/dev/dxg")  # Windows' own driver: one device for whatever is there


def present() -> tuple[int, ...]:
    """Return the numbers of the GPUs, which the driver gives in the order of PCI addresses."""
    if NVIDIA.is_dir():
        return tuple(range(len(list(NVIDIA.iterdir()))))
    return (0,) if WSL.exists() else ()
