"""vLLM's own flags: parsed as ``vllm serve`` parses them, and which of them do nothing in a worker."""

from __future__ import annotations

import argparse
import json
from argparse import Namespace
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from vbatch.engine import installed, vllm_names

# What a server of its own would do, by the names of the parsed arguments; vbatch answers requests in its own process.
_SERVER = (
    "api_server_count",
    "headless",
    "grpc",
    "host",
    "port",
    "uds",
    "ssl_keyfile",
    "ssl_certfile",
    "root_path",
    "served_model_name",
)
_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
# Ray's processes would be out of its sight.
_BACK_ENDS = ("distributed_executor_backend", "data_parallel_backend")


class FlagsRefused(Exception):
    """vLLM does not accept these flags; it has printed why."""


class UnexpectedArgument(ValueError):
    """A word among vLLM's flags that belongs to no flag."""


class ParserUnknown(ValueError):
    """vLLM has no parser of tool calls or of reasoning with this name."""


class SharedFlagsRefused(Exception):
    """vLLM does not accept the flags that every model gets, so no model would load."""


def parse(words: list[str]) -> Namespace:
    """Parse flags as ``vllm serve`` does, and check what its server would check.

    Raises FlagsRefused, UnexpectedArgument, ParserUnknown.
    """
    vllm = vllm_names.load()
    parser = vllm.make_arg_parser(vllm.FlexibleArgumentParser(prog="vllm"))
    for action in parser._actions:
        if action.nargs in ("+", "*"):
            action.__class__ = type("Adding", (_Adding, type(action)), {})
    try:
        arguments: Namespace = parser.parse_args(words)
    except SystemExit as stop:  # raised in a thread, it would end the event loop
        raise FlagsRefused from stop
    if arguments.model_tag is not None:
        raise UnexpectedArgument(arguments.model_tag)
    vllm.configure_logging_from_args(arguments)
    vllm.validate_parsed_serve_args(arguments)
    if arguments.tool_parser_plugin:
        vllm.ToolParserManager.import_tool_parser(arguments.tool_parser_plugin)
    if arguments.reasoning_parser_plugin:
        vllm.ReasoningParserManager.import_reasoning_parser(arguments.reasoning_parser_plugin)
    try:
        vllm.validate_api_server_args(arguments)
    except KeyError as error:  # no such parser of tool calls or of reasoning
        raise ParserUnknown(error.args[0]) from error
    # vLLM looks at the one in --structured-outputs-config alone.
    known = vllm.ReasoningParserManager.list_registered()
    if arguments.reasoning_parser and arguments.reasoning_parser not in known:
        raise ParserUnknown(
            f"invalid reasoning parser: {arguments.reasoning_parser} (chose from {{ {','.join(known)} }})"
        )
    return arguments


def switch_off(arguments: Namespace) -> tuple[str, ...]:
    """Take out what has no effect in a worker, and return these flags as they are written.

    The served name is the one that requests use, and Ray starts processes that no guard would end.
    """
    vllm = vllm_names.load()
    defaults = vllm.make_arg_parser(vllm.FlexibleArgumentParser()).parse_args([])
    found = []
    for name in _SERVER:
        if hasattr(arguments, name) and getattr(arguments, name) != (default := getattr(defaults, name)):
            found.append(_written(name))
            setattr(arguments, name, default)
    for name in _BACK_ENDS:
        if getattr(arguments, name, None) == "ray":
            found.append(f"{_written(name)} ray")
            setattr(arguments, name, "mp")
    return tuple(found)


def enable_adapters(arguments: Namespace, places: Sequence[str]) -> None:
    """Have the engine take these adapters, which are loaded one by one when it has started.

    vLLM's own way to load them at its start would refuse the model for one bad adapter. It wants to know the highest
    rank; where the flags give none, the adapters' own files do.
    """
    arguments.lora_modules = None
    if not places:
        return
    arguments.enable_lora = True
    highest = max(map(_rank, places))
    if not installed.computes_on_gpu():
        # The build for CPUs gives requests without an adapter the weights in the last slot, which must stay empty
        # (vllm/lora/ops/torch_ops/lora_ops.py, 0.32 and 0.33: the index -1).
        arguments.max_loras = max(arguments.max_loras, len(places) + 1)
    arguments.max_lora_rank = max(arguments.max_lora_rank, _allowed(highest))


def _rank(place: str) -> int:
    with suppress(OSError, ValueError, AttributeError, TypeError):
        return int(json.loads((Path(place).expanduser() / "adapter_config.json").read_text()).get("r", 0))
    return 0


def _allowed(rank: int) -> int:
    """Return the rank to allow: vLLM knows some steps (MaxLoRARanks, 0.32)."""
    return next((step for step in _RANKS if step >= rank), _RANKS[-1])


def _written(name: str) -> str:
    return "--" + name.replace("_", "-")


class _Adding(argparse.Action):
    """Has a flag of several values, given again, add to them: a list in the configuration, more on the command line."""

    _given = False

    def __call__(
        self, parser: Any, namespace: Namespace, values: Any, option_string: str | None = None
    ) -> None:
        before = getattr(namespace, self.dest, None) if self._given else None
        super().__call__(parser, namespace, values, option_string)
        now = getattr(namespace, self.dest)
        if isinstance(before, list) and isinstance(now, list):
            setattr(namespace, self.dest, [*before, *now])
        self._given = True
