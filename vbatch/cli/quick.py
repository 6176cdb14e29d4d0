"""Begin a command quickly: its imports leave nothing to collect, and vbatch's own classes need no pydantic plugin.

A collection of the many objects of the modules takes a fifth of ``vbatch list``, the search of all installed
packages for plugins a twentieth.
"""

from __future__ import annotations

import gc
import os
import sys

_PLUGINS = "PYDANTIC_DISABLE_PLUGINS"
_added: list[str] = []  # variables that ``begin`` has set


def begin() -> None:
    """Collect no garbage and look for no plugins, until ``end``. For the first line of a process."""
    gc.disable()
    if _PLUGINS not in os.environ:
        os.environ[_PLUGINS] = "__all__"
        _added.append(_PLUGINS)


def end() -> None:
    """Collect garbage again, but not among the modules, and let other packages have their plugins."""
    if not gc.isenabled():
        gc.freeze()
        gc.enable()
    while _added:
        os.environ.pop(_added.pop(), None)


def leave() -> None:
    """Have nothing collected that goes with the process.

    Not where an engine was loaded: nanobind, which it brings, reports what was not collected as leaks, on stderr.
    """
    if "torch" not in sys.modules:
        gc.freeze()
