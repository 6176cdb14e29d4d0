"""What may befall a worker inside its own system calls: see the C source, which is loaded before its libc."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path

from tests.rigs.nvml import COMPILER

SOURCE = Path(__file__).with_name("misfortune.c")


@dataclass(frozen=True, kw_only=True)
class Misfortune:
    """The ``nth`` call that makes something durable fails with ``error`` (an errno); without one it kills.

    Counted are the calls whose name and path match the pattern ``only``, of fnmatch(3); with ``nth`` 0 they are
    only written down.
    """

    seen: Path
    nth: int = 0
    error: int = 0
    only: str = "*"

    def arm(self) -> None:
        """Have it befall this process, which was started ``preloaded``."""
        arm = ctypes.CDLL(None).misfortune_arm
        arm(self.nth, self.error, os.fsencode(self.only), os.fsencode(self.seen))

    def calls(self) -> list[str]:
        """Return what was counted, such as ``fsync /home/…``, up to what it befell."""
        return self.seen.read_text().splitlines() if self.seen.exists() else []

    @property
    def befell(self) -> str | None:
        """The call that it befell; None where the process made fewer."""
        calls = self.calls()
        return calls[self.nth - 1] if 0 < self.nth <= len(calls) else None


@dataclass(frozen=True)
class WallClock:
    """A wall clock that can be set, for the processes that look at it."""

    path: Path

    def set_off(self, by: timedelta) -> None:
        """Have it be off by so much, at once."""
        with self.path.open("r+b" if self.path.exists() else "wb") as file:
            file.write(struct.pack("l", int(by.total_seconds())))

    def show(self) -> None:
        """Have this process, which was started ``preloaded``, look at it."""
        assert ctypes.CDLL(None).misfortune_clock(os.fsencode(self.path)) == 0


@contextmanager
def preloaded() -> Iterator[None]:
    """Have what is started meanwhile load the library. Without a C compiler nothing is done."""
    if COMPILER is None:
        yield
        return
    before = os.environ.get("LD_PRELOAD")
    os.environ["LD_PRELOAD"] = " ".join(filter(None, [str(_library()), before]))
    try:
        yield
    finally:
        if before is None:
            del os.environ["LD_PRELOAD"]
        else:
            os.environ["LD_PRELOAD"] = before


@cache
def _library() -> Path:
    assert COMPILER is not None
    folder = Path(tempfile.mkdtemp(prefix="vbatch-misfortune-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    library = folder / "misfortune.so"
    command: list[str | Path] = [
        COMPILER,
        "-shared",
        "-fPIC",
        "-O1",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-o",
        library,
        SOURCE,
        "-ldl",
    ]
    subprocess.run(command, check=True)
    return library
