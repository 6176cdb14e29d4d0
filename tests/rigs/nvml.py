"""A stand-in for the NVIDIA driver: the tests' own C library, loaded by the real pynvml in the real probe."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SOURCE = Path(__file__).with_name("fake_nvml.c")
COMPILER = next((name for name in ("cc", "gcc", "clang") if shutil.which(name)), None)

GIB = 1 << 30
TOTAL = round(15.57 * GIB)  # of the incident's RTX 4080


@dataclass(frozen=True)
class StandInDriver:
    """A driver whose state is a text file; see the C source for what it can say."""

    library: Path
    facts: Path

    @classmethod
    def build(cls, folder: Path) -> StandInDriver:
        """Compile the library into a folder."""
        assert COMPILER is not None
        library = folder / "libnvidia-ml.so.1"
        command = [COMPILER, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror"]
        subprocess.run([*command, "-Wl,-soname,libnvidia-ml.so.1", "-o", library, SOURCE], check=True)
        driver = cls(library, folder / "driver.txt")
        driver.says()
        return driver

    def says(self, *facts: str) -> None:
        """Set the driver's state, one fact a line; without any there is no GPU."""
        fresh = self.facts.with_suffix(".new")
        fresh.write_text("".join(f"{fact}\n" for fact in facts))
        fresh.rename(self.facts)

    def has(self, *holders: tuple[int, int | None], leak: int = 0, total: int = TOTAL) -> None:
        """Have one GPU whose memory these processes (pid, bytes) hold."""
        processes = [f"proc {pid} {'NA' if used is None else used}" for pid, used in holders]
        self.says("gpu", f"total {total}", f"leak {leak}", *processes)

    @property
    def environment(self) -> dict[str, str]:
        """What makes a process load it instead of a real driver."""
        path = [str(self.library.parent), os.environ.get("LD_LIBRARY_PATH", "")]
        return {"LD_LIBRARY_PATH": ":".join(filter(None, path)), "STAND_IN_NVML": str(self.facts)}
