"""The tool that checks alert rules: the machine's own, or Debian's, unpacked into the tests' cache, not installed."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from tests.rigs.model import CACHE


class Unavailable(Exception):
    """There is none, and none can be had; the words say why."""


def find() -> str:
    """Return its path; the first call on a Debian machine fetches 19 MB. Raises Unavailable."""
    return shutil.which("promtool") or fetched()


def fetched() -> str:
    """Return the path of Debian's, fetched once. Raises Unavailable without apt, or without its lists or mirror."""
    kept = CACHE / "promtool"
    if not kept.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=CACHE) as name:
            folder = Path(name)
            try:
                _run("apt-get", "download", "prometheus", folder=folder)
                _run(
                    "dpkg",
                    "-x",
                    *(package.name for package in folder.glob("*.deb")),
                    "unpacked",
                    folder=folder,
                )
            except (OSError, subprocess.SubprocessError) as error:
                raise Unavailable(
                    f"no promtool here (Debian: apt-get install prometheus): {error}"
                ) from error
            (folder / "unpacked/usr/bin/promtool").rename(kept)
    return str(kept)


def _run(*command: str, folder: Path) -> None:
    subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=120)
