"""How this vbatch is called again: by its own path, because sudo and cron do not know a virtual environment."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path

from vbatch.service.scope import Scope


def command(*arguments: str) -> str:
    """Return the command line, to be pasted into any shell."""
    script = Path(sys.executable).with_name("vbatch")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "vbatch"]
    return shlex.join([*program, *arguments])


def in_scope(scope: Scope, *arguments: str) -> str:
    """Return the command line of somebody who may change this scope."""
    if scope is Scope.USER:
        return shlex.join(["vbatch", *arguments, "--user"])
    return f"sudo {command(*arguments, '--system')}"
