"""A real headless Chromium for tests: the one of this machine, else Debian's where the tests may install it."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
_APT = ("apt-get", "install", "--yes", "--no-install-recommends", "chromium")


@cache
def executable() -> str:
    """Return the path of a browser; skip the test, with the reason, where there is none."""
    if (found := _found()) is not None:
        return found
    if os.geteuid() != 0 or shutil.which("apt-get") is None:
        pytest.skip("needs chromium, and only root can install it with apt-get")
    environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(_APT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if (found := _found()) is None:
        pytest.skip(f"needs chromium, and apt-get could not install it: {done.stderr.strip()[-200:]}")
    return found


def _found() -> str | None:
    return next((path for name in _NAMES if (path := shutil.which(name)) is not None), None)


@contextlib.contextmanager
def browser() -> Iterator[Any]:
    """Run one browser; its contexts are as separate as two people's."""
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    path = executable()
    with playwright.sync_playwright() as running:
        found = running.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            yield found
        finally:
            found.close()
