"""vLLM's OpenAI server without its socket. The only module that knows where vLLM keeps the parts of it.

The same steps as ``vllm serve`` (``vllm.entrypoints.launchers.api_server.entry``, 0.32 and 0.33), but the engine is
started from a thread, so that the event loop continues during the minutes that this takes.
"""

from __future__ import annotations

import importlib
import threading
from argparse import Namespace
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from vbatch.engine import guard
from vbatch.engine.asgi import App


class Abandoned(Exception):
    """The start was cancelled: no engine is needed any more."""


class FlagsRefused(Exception):
    """vLLM does not accept these flags; it has printed why."""


class UnexpectedArgument(ValueError):
    """A word among vLLM's flags that belongs to no flag."""


class SharedFlagsRefused(Exception):
    """vLLM does not accept the flags that every model gets, so no model would load."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A running engine. ``llm`` is vLLM's AsyncLLM, which the caller must shut down."""

    arguments: Namespace
    llm: Any

    @property
    def max_num_seqs(self) -> int:
        """How many sequences the engine runs at once, over all its data-parallel ranks."""
        config = self.llm.vllm_config
        return int(config.scheduler_config.max_num_seqs) * int(config.parallel_config.data_parallel_size)

    @property
    def processes(self) -> list[Any]:
        """The engine's multiprocessing processes: one EngineCore per data-parallel rank."""
        return list(self.llm.engine_core.resources.engine_manager.processes)

    @property
    def all_processes(self) -> list[Any]:
        """All processes that vLLM has started from here: the engine's, and the coordinator of several of them."""
        coordinator = self.llm.engine_core.resources.coordinator
        return self.processes + ([] if coordinator is None else [coordinator.proc])


def imports() -> None:
    """Import vLLM, which takes many seconds. Raises what a broken installation raises.

    Call it on its own, not from ``start``: a library keeps an ImportError, and with its traceback every frame that was
    running then; an engine in such a frame would never be freed.
    """
    importlib.import_module("vllm.entrypoints.launchers.api_server.entry")


def start(
    *,
    model: str,
    path: str,
    args: Sequence[str],
    shared_args: Sequence[str],
    abandoned: threading.Event,
) -> Started:
    """Start an engine and wait until it has loaded its model. Blocks for as long as that takes.

    Raises whatever vLLM raises; FlagsRefused and UnexpectedArgument for flags that it does not accept,
    SharedFlagsRefused where every model gets these; Abandoned when the event was set before the engine's processes
    were started.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.usage.usage_lib import UsageContext
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.coordinator import DPCoordinatorProc

    named = ("--model", path, "--served-model-name", model)
    try:
        _parse([*shared_args, *named])
    except (FlagsRefused, UnexpectedArgument) as error:
        raise SharedFlagsRefused from error
    arguments = _parse([*args, *named])
    engine_args = AsyncEngineArgs.from_cli_args(arguments)
    _cli_args().propagate_flash_late_interaction(arguments, engine_args)
    # LLM_CLASS, for the batch sizes of offline work: the context of `vllm run-batch` has no row in vLLM's
    # table of defaults and gets 128 sequences where LLM_CLASS gets 256 to 1024.
    context = UsageContext.LLM_CLASS
    # The only process that loads no plugin, so it would not be guarded.
    DPCoordinatorProc.run_coordinator = staticmethod(guard.run_coordinator)
    config = engine_args.create_engine_config(usage_context=context)
    if abandoned.is_set():
        raise Abandoned
    llm = AsyncLLM.from_vllm_config(
        vllm_config=config,
        usage_context=context,
        enable_log_requests=engine_args.enable_log_requests,
        aggregate_engine_logging=engine_args.aggregate_engine_logging,
        disable_log_stats=engine_args.disable_log_stats,
    )
    return Started(arguments=arguments, llm=llm)


@asynccontextmanager
async def serving(started: Started) -> AsyncIterator[App]:
    """Build the app that answers for this engine; it serves for as long as the context is open."""
    from vllm.entrypoints.launchers.api_server.entry import build_app, init_app_state

    llm, arguments = started.llm, started.arguments
    await llm.reset_mm_cache()
    tasks = await llm.get_supported_tasks()
    app = build_app(arguments, tasks, llm.model_config)
    await init_app_state(llm, app.state, arguments, tasks)
    async with app.router.lifespan_context(app):
        yield app


def authorization(arguments: Namespace) -> list[tuple[bytes, bytes]]:
    """Return the header that the app requires if the user's environment or flags set a key for vLLM's API."""
    from vllm import envs

    keys = [key for key in (arguments.api_key or [envs.VLLM_API_KEY]) if key]
    return [(b"authorization", f"Bearer {keys[0]}".encode())] if keys else []


def _parse(words: list[str]) -> Namespace:
    from vllm.logger import configure_logging_from_args
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    cli_args = _cli_args()
    parser = cli_args.make_arg_parser(FlexibleArgumentParser(prog="vllm"))
    try:
        arguments: Namespace = parser.parse_args(words)
    except SystemExit as stop:  # raised in a thread, it would end the event loop
        raise FlagsRefused from stop
    if arguments.model_tag is not None:
        raise UnexpectedArgument(arguments.model_tag)
    configure_logging_from_args(arguments)
    cli_args.validate_parsed_serve_args(arguments)
    if arguments.tool_parser_plugin:
        ToolParserManager.import_tool_parser(arguments.tool_parser_plugin)
    if arguments.reasoning_parser_plugin:
        ReasoningParserManager.import_reasoning_parser(arguments.reasoning_parser_plugin)
    return arguments


def _cli_args() -> Any:
    """Import the module of vLLM's flags: 0.33 moved it."""
    try:
        return importlib.import_module("vllm.entrypoints.common.cli_args")
    except ModuleNotFoundError:
        return importlib.import_module("vllm.entrypoints.launchers.cli_args")
