"""vLLM's OpenAI server without its socket, made of the parts that ``vllm_names`` finds.

The same steps as ``vllm serve`` (``vllm.entrypoints.launchers.api_server.entry``, 0.32 and 0.33), but the engine is
started from a thread, so that the event loop continues during the minutes that this takes.
"""

from __future__ import annotations

import importlib
import logging
import threading
from argparse import Namespace
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vbatch.engine import courtesy, defaults, flags, guard, vllm_names
from vbatch.engine.asgi import App
from vbatch.protocol import AUDIO_ENDPOINTS

log = logging.getLogger(__name__)


class Abandoned(Exception):
    """The start was cancelled: no engine is needed any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """A running engine. ``llm`` is vLLM's AsyncLLM, which the caller must shut down.

    ``without_effect`` are the flags that do nothing here.
    ``adapters`` (name and place) are loaded by ``serving``; ``refused`` are then those that could not be, with reasons.
    """

    arguments: Namespace
    llm: Any
    without_effect: tuple[str, ...]
    adapters: Sequence[tuple[str, str]]
    refused: dict[str, str] = field(default_factory=dict)

    @property
    def max_num_seqs(self) -> int:
        """How many sequences the engine runs at once, over all its data-parallel ranks."""
        config = self.llm.vllm_config
        return int(config.scheduler_config.max_num_seqs) * int(config.parallel_config.data_parallel_size)

    @property
    def prioritizes(self) -> bool:
        """Whether it schedules by the priority of requests; else it refuses those that name one."""
        return str(self.llm.vllm_config.scheduler_config.policy) == courtesy.POLICY

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
    """Import vLLM, which takes many seconds. Raises UnsupportedVllm, and what a broken installation raises.

    Call it on its own, not from ``start``: a library keeps an ImportError, and with its traceback every frame that was
    running then; an engine in such a frame would never be freed.
    """
    vllm_names.load()


def start(
    *,
    model: str,
    path: str,
    aliases: Sequence[str],
    adapters: Mapping[str, str],
    args: Sequence[str],
    shared_args: Sequence[str],
    abandoned: threading.Event,
) -> Started:
    """Start an engine and wait until it has loaded its model. Blocks for as long as that takes.

    Raises whatever vLLM raises; FlagsRefused, UnexpectedArgument and ParserUnknown (``flags``) for flags that it does
    not accept, SharedFlagsRefused where every model gets these; Abandoned when the event was set before the engine's
    processes were started.
    """
    vllm = vllm_names.load()
    named = ("--model", path)
    try:
        flags.parse([*shared_args, *named])
    except (flags.FlagsRefused, flags.UnexpectedArgument, flags.ParserUnknown) as error:
        raise flags.SharedFlagsRefused from error
    arguments = flags.parse([*args, *named])
    without_effect = flags.switch_off(arguments)
    arguments.served_model_name = [model, *aliases]
    loras = [*adapters.items(), *((module.name, module.path) for module in arguments.lora_modules or ())]
    flags.enable_adapters(arguments, [place for _, place in loras])
    arguments.dtype = defaults.dtype(vllm, arguments, path)
    engine_args = vllm.AsyncEngineArgs.from_cli_args(arguments)
    vllm.propagate_flash_late_interaction(arguments, engine_args)
    context = defaults.context(vllm)
    defaults.use_both_cores(vllm)
    # The only process that loads no plugin, so it would not be guarded.
    vllm.DPCoordinatorProc.run_coordinator = staticmethod(guard.run_coordinator)
    config = engine_args.create_engine_config(usage_context=context)
    if abandoned.is_set():
        raise Abandoned
    llm = vllm.AsyncLLM.from_vllm_config(
        vllm_config=config,
        usage_context=context,
        enable_log_requests=engine_args.enable_log_requests,
        aggregate_engine_logging=engine_args.aggregate_engine_logging,
        disable_log_stats=engine_args.disable_log_stats,
    )
    return Started(arguments=arguments, llm=llm, without_effect=without_effect, adapters=loras)


@asynccontextmanager
async def serving(started: Started) -> AsyncIterator[App]:
    """Build the app that answers for this engine; it serves for as long as the context is open."""
    vllm = vllm_names.load()
    llm, arguments = started.llm, started.arguments
    await llm.reset_mm_cache()
    tasks = await llm.get_supported_tasks()
    app = vllm.build_app(arguments, tasks, llm.model_config)
    await vllm.init_app_state(llm, app.state, arguments, tasks)
    for name, place in started.adapters:
        wanted = vllm.LoadLoRAAdapterRequest(lora_name=name, lora_path=place)
        loaded = await app.state.openai_serving_models.load_lora_adapter(wanted)
        if not isinstance(loaded, str):
            started.refused[name] = loaded.error.message
    async with app.router.lifespan_context(app):
        yield app


def names(app: Any) -> frozenset[str]:
    """Return the names at which a served model answers: its own, its aliases and its adapters."""
    models = app.state.openai_serving_models
    return frozenset((*(path.name for path in models.base_model_paths), *models.lora_requests))


def authorization(arguments: Namespace) -> list[tuple[bytes, bytes]]:
    """Return the header that the app requires if the user's environment or flags set a key for vLLM's API."""
    keys = [key for key in (arguments.api_key or [vllm_names.load().envs.VLLM_API_KEY]) if key]
    return [(b"authorization", f"Bearer {keys[0]}".encode())] if keys else []


def decodes_audio() -> bool:
    """Return whether the packages are there with which vLLM reads audio files: PyAV or torchcodec.

    Without them it answers every request for a transcription with "Invalid or unsupported audio file". Each of its
    placeholders for a package that is missing fails at the first use.
    """
    try:
        media = importlib.import_module("vllm.multimodal.media.audio")
    except ImportError:
        return False
    placeholder = importlib.import_module("vllm.utils.import_utils").PlaceholderModule
    decoder = getattr(media, "AudioDecoder", None)
    return decoder is not None or not isinstance(getattr(media, "av", None), placeholder)


def lacking(paths: Iterable[str]) -> dict[str, str]:
    """Return those of a model's urls that do not work here, and the package that they need."""
    if decodes_audio():
        return {}
    return {
        path: "the package av (PyAV), with which vLLM reads audio"
        for path in paths
        if path in AUDIO_ENDPOINTS
    }


def upload_limit() -> int:
    """Return how many bytes of an audio file vLLM takes."""
    return int(vllm_names.load().envs.VLLM_MAX_AUDIO_CLIP_FILESIZE_MB * (1 << 20))


def describe_fields(folder: Path) -> None:
    """Write which request fields this vLLM knows, where the package has no table of its version: ``submit`` uses it."""
    from vbatch.engine.fields import path_of, write

    version = write.version()
    if not path_of(version).exists() and not path_of(version, folder).exists():
        with suppress(Exception):  # the engine works without it
            write.write(folder)


def report(started: Started, model: str) -> None:
    """Log what a person should know of this engine: flags that do nothing, a version that no test has seen."""
    if started.without_effect:
        log.warning("engine.without_effect model=%s flags=%s", model, " ".join(started.without_effect))
    version = vllm_names.load().__version__
    if vllm_names.newer(version):
        log.warning("engine.version version=%s tested=%s", version, vllm_names.TESTED)
