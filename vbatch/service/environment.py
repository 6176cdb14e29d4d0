"""The service's environment file: what this shell sets and a boot would not know, kept at mode 0600.

Its syntax, by systemd.exec(5), is not the one of unit files (``vbatch.service.quoting``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vbatch import config
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

_HEADER = "# The environment of vbatch's service; may hold secrets. You may edit it: install-service then only adds.\n"

_QUOTED = re.compile(r"""  "(?:[^"\\]|\\[\s\S])*"  |  '[^']*'  """, re.X)
_LINE = re.compile(
    rf"""^[ \t]*(?:
        [#;].* |
        (?P<name>[A-Za-z_][A-Za-z0-9_]*)=
        (?P<quoted>(?:[ \t]*(?:{_QUOTED.pattern}))*)[ \t]*
        (?P<bare>(?!["'])(?:[^\\\n]|\\[\s\S])*)
    )$""",
    re.M | re.X,
)
_IN_QUOTES = str.maketrans({character: "\\" + character for character in '\\"`$'})


def worth_keeping(environ: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that the service needs to see what this shell's commands see."""
    own = config.variables() - _NOT_KEPT
    return {
        name: value
        for name, value in environ.items()
        if value and (name in own or name in _NAMES or name.startswith(_PREFIXES) or name.endswith(_SUFFIXES))
    }


def updated(text: str, changed: Mapping[str, str]) -> str:
    """Return the file's text with these variables set.

    A file as vbatch wrote it is rewritten and sealed. To one that a person edited they are added, for the last
    assignment wins; it stays the person's own, with comments and all.
    """
    if not text or units.intact(text):
        known = parse(text)
        return units.seal(_HEADER + assignments(known | dict(changed)))
    return text + ("" if text.endswith("\n") else "\n") + assignments(changed)


def assignments(variables: Mapping[str, str]) -> str:
    """Return the assignments of an environment file, sorted."""
    return "".join(f'{name}="{variables[name].translate(_IN_QUOTES)}"\n' for name in sorted(variables))


def parse(text: str) -> dict[str, str]:
    """Read the assignments of an environment file as systemd does (parse_env_file_internal in its source)."""
    found: dict[str, str] = {}
    for line in _LINE.finditer(text):
        if line["name"] is not None:
            quoted = "".join(map(_unquote, _QUOTED.findall(line["quoted"])))
            found[line["name"]] = quoted + re.sub(r"\\([\s\S])", _kept, line["bare"].rstrip(" \t"))
    return found


def _unquote(text: str) -> str:
    """Within double quotes a backslash is one, except before what needs it; within single quotes it always is."""
    if text.startswith("'"):
        return text[1:-1]
    return re.sub(r'\\(["\\$`\n])', _kept, text[1:-1])


def _kept(escaped: re.Match[str]) -> str:
    """Return the character that a backslash kept from its meaning; the end of a line vanishes with it."""
    return escaped[1].replace("\n", "")
