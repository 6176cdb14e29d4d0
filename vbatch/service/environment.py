"""The service's environment file: what this shell sets and a boot would not know, kept at mode 0600."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from vbatch import config
from vbatch.service import quoting, seal

# What decides where the store, the models and the caches are. Not: which GPU, that is the instance's.
_NAMES = frozenset({"XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"})
_PREFIXES = ("HF_", "VLLM_")
_NOT_KEPT = frozenset({"VBATCH_GPU", "VBATCH_DEBUG"})

_HEADER = (
    "# The environment of vbatch's service; may hold secrets. Yours to edit: install-service only adds.\n"
)


def worth_keeping(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the service needs to see what this shell's commands see."""
    ours = config.variables() - _NOT_KEPT
    return {
        name: value
        for name, value in environ.items()
        if value and (name in ours or name in _NAMES or name.startswith(_PREFIXES))
    }


def read(file: Path) -> dict[str, str]:
    """Return what the file sets; nothing where there is none."""
    try:
        return quoting.read_environment_file(file.read_text())
    except FileNotFoundError:
        return {}


def render(variables: Mapping[str, str]) -> str:
    """Return the file's text, sealed."""
    return seal.seal(_HEADER + quoting.environment_file(variables))
