"""Whether this is Linux inside Windows (WSL2), where the driver is Windows' and lists no processes."""

from __future__ import annotations

from pathlib import Path

KERNEL = Path("/proc/version")  # "… microsoft-standard-WSL2 …"
DEVICE = Path("/dev/dxg")  # the GPU as Windows passes it on


def is_wsl() -> bool:
    """Whether the kernel is that of WSL; one that was built by its user still has the device."""
    try:
        words = KERNEL.read_text(encoding="utf-8", errors="replace").lower()
    except OSError:
        words = ""
    return "microsoft" in words or "wsl" in words or DEVICE.exists()
