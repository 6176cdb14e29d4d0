"""The service's environment file: what this shell sets and a boot would not know, kept at mode 0600."""

from __future__ import annotations

from collections.abc import Mapping

from vbatch import config
from vbatch.service import quoting
from vbatch.system import units

# What decides where the store, the models and the caches are, how they and CUDA are reached, and what compiles for
# the GPU. Not: which GPU, that is the instance's.
_NAMES = frozenset(
    {
        *("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
        *("CUDA_HOME", "CUDA_PATH", "CUDA_CACHE_PATH", "LD_LIBRARY_PATH", "CC", "CXX", "DO_NOT_TRACK"),
    }
)
# libpq reads PGPASSFILE, PGSSLMODE and many more.
_PREFIXES = ("HF_", "VLLM_", "PG", "NCCL_", "PYTORCH_", "TORCH", "TRITON_", "FLASHINFER_", "OMP_")
_SUFFIXES = ("_PROXY", "_proxy")
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
        if value
        and (name in ours or name in _NAMES or name.startswith(_PREFIXES) or name.endswith(_SUFFIXES))
    }


def updated(text: str, changed: Mapping[str, str]) -> str:
    """Return the file's text with these variables set.

    A file that nobody touched is written anew, sealed. To one that a person edited they are added, for the
    last assignment wins; it stays the person's own, with comments and all.
    """
    if not text or units.intact(text):
        known = quoting.read_environment_file(text)
        return units.seal(_HEADER + quoting.environment_file(known | dict(changed)))
    return text + ("" if text.endswith("\n") else "\n") + quoting.environment_file(changed)
