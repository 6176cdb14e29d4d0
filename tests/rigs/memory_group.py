"""A control group of the machine with little memory: what needs more in it is ended by the kernel. Needs root."""

from __future__ import annotations

import os
import secrets
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

_TOP = Path("/sys/fs/cgroup")
_ENTER = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); os.execv(sys.argv[2], sys.argv[2:])"


@contextmanager
def memory_group(size: int) -> Iterator[Path]:
    """Yield the folder of a new group with ``size`` bytes, of version 2 or 1; skip where there can be none."""
    if os.geteuid() != 0:
        pytest.skip("needs root: makes a control group")
    old = (_TOP / "memory").is_dir()
    folder = (_TOP / "memory" if old else _TOP) / f"vbatch-test-{secrets.token_hex(4)}"
    try:
        folder.mkdir()
        (folder / ("memory.limit_in_bytes" if old else "memory.max")).write_text(str(size))
        with suppress(OSError):  # no swap in its place
            (folder / ("memory.memsw.limit_in_bytes" if old else "memory.swap.max")).write_text(
                str(size if old else 0)
            )
    except OSError as error:
        with suppress(OSError):
            folder.rmdir()
        pytest.skip(f"no control group for memory can be made here: {error}")
    try:
        yield folder
    finally:
        for _ in range(100):
            with suppress(OSError):
                folder.rmdir()
                break
            time.sleep(0.02)


def start_in(group: Path, code: str, arguments: Sequence[str] = ()) -> subprocess.Popen[str]:
    """Run Python code in the group."""
    command = [
        sys.executable,
        "-c",
        _ENTER,
        str(group / "cgroup.procs"),
        sys.executable,
        "-c",
        code,
        *arguments,
    ]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
