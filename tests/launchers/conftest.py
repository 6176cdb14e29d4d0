"""What the launchers' tests share: a ``vbatch`` on the path, as a launcher finds it on a machine."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.rigs.commands import Home
from tests.rigs.docs import ROOT


@pytest.fixture
def environment(home: Home, tmp_path: Path) -> dict[str, str]:
    """The variables of a process at home that finds the command ``vbatch`` of this folder, with the echo engine."""
    command = tmp_path / "bin" / "vbatch"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec {sys.executable} -m vbatch "$@"\n')
    command.chmod(0o755)
    paths = f"{command.parent}:{os.environ['PATH']}"
    return home.env | {"PATH": paths, "PYTHONPATH": str(ROOT), "VBATCH_ENGINE": "echo"}
