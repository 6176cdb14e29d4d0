"""The service's environment file: what this shell sets and a boot would not know, kept at mode 0600.

Its syntax, by systemd.exec(5), is not the one of unit files (``vbatch.service.quoting``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from vbatch import config
from vbatch.errors import VbatchError
from vbatch.system import units
from vbatch.text import one_line

# Where the loader looks for libraries. root's own commands of the machine's unit must not see it: a person may write
# there. So that unit gives it to the worker and to doctor alone, on their command lines.
LIBRARY_PATH = "LD_LIBRARY_PATH"

# What decides where the store, the models and the caches are, how they and CUDA are reached, and what compiles for
# the GPU. Not: which GPU, that is the instance's.
_NAMES = frozenset(
    {
        *("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME", "XDG_CACHE_HOME"),
        *("SSL_CERT_FILE", "SSL_CERT_DIR", "REQUESTS_CA_BUNDLE"),
        LIBRARY_PATH,
        *("CUDA_HOME", "CUDA_PATH", "CUDA_CACHE_PATH", "CC", "CXX", "DO_NOT_TRACK"),
    }
)
# libpq reads PGPASSFILE, PGSSLMODE and many more.
_PREFIXES = ("HF_", "VLLM_", "PG", "NCCL_", "PYTORCH_", "TORCH", "TRITON_", "FLASHINFER_", "OMP_")
_SUFFIXES = ("_PROXY", "_proxy")
# The token for Label Studio is for people at a shell, and is written nowhere.
_NOT_KEPT = frozenset({"VBATCH_GPU", "VBATCH_DEBUG", "VBATCH_LABEL_STUDIO_TOKEN"})

_HEADER = "# The environment of vbatch's service; may hold secrets. You may edit it: install-service then only adds.\n"

# Any bytes can be the name or the value of a variable: a name with a line feed in it would set others, for root too.
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_UNWRITABLE = re.compile(r"[\ud800-\udfff\x00-\x08\x0b-\x1f\x7f]")

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
    return {name: value for name, value in _wanted(environ).items() if _can_be_written(name, value)}


def left_out(environ: Mapping[str, str]) -> list[str]:
    """Return one sentence for each variable that would be kept if systemd could read it back."""
    return [
        f"{one_line(name, limit=60)} is not kept for the service: systemd cannot read its name or its value"
        for name, value in sorted(_wanted(environ).items())
        if not _can_be_written(name, value)
    ]


def _wanted(environ: Mapping[str, str]) -> dict[str, str]:
    own = (config.variables() - _NOT_KEPT) | _keys()
    return {
        name: value
        for name, value in environ.items()
        if value and (name in own or name in _NAMES or name.startswith(_PREFIXES) or name.endswith(_SUFFIXES))
    }


def _keys() -> set[str]:
    """Return the variables that the configuration names for the keys of endpoints."""
    try:
        endpoints = config.load().endpoints.values()
    except VbatchError:  # a wrong configuration is reported elsewhere
        return set()
    return {endpoint.api_key_env for endpoint in endpoints if endpoint.api_key_env is not None}


def _can_be_written(name: str, value: str) -> bool:
    """Whether it is one variable, as text, for systemd; a line feed within a value is."""
    return _NAME.fullmatch(name) is not None and _UNWRITABLE.search(value) is None


def updated(text: str, changed: Mapping[str, str], *, without: str | None = None) -> str:
    """Return the file's text with these variables set, and ``without`` one that is kept elsewhere.

    A file as vbatch wrote it is rewritten and sealed. To one that a person edited they are added, for the last
    assignment wins; it stays the person's own, with comments and all.
    """
    if not text or units.intact(text):
        known = {name: value for name, value in parse(text).items() if name != without}
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
