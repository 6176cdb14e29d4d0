"""The kinds of engine that a worker can have: what each kind needs, which models it serves, how it loads a model.

A loader imports its engine when it is called, because commands use this table too and load nothing. The names of the
kinds also stand in ``config.Settings.engine`` and ``--engine``, which cannot import the table; a test compares them.
"""

from __future__ import annotations

import asyncio
import shlex
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

from vbatch.config import Settings
from vbatch.engine import Loaded, vllm_names
from vbatch.engine.endpoint import configured
from vbatch.errors import ConfigError

ECHO_MODEL = "echo"  # the only model that the echo engine serves; vLLM does not serve it


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What an engine is loaded with: the model, vLLM's settings for it, and all settings, for the other engines.

    ``aliases`` are further names of the model, ``adapters`` map names to places.
    """

    model: str
    path: str
    aliases: tuple[str, ...] = ()
    adapters: Mapping[str, str] = field(default_factory=dict)
    args: tuple[str, ...]
    shared_args: tuple[str, ...]
    visible_gpus: str | None
    title_prefix: str
    log_dir: Path
    settings: Settings

    @property
    def echo_latency(self) -> timedelta:
        """How long the echo engine takes for an answer."""
        return self.settings.echo_latency


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """One kind of engine. Only ``serves`` decides whether it may answer requests for a model.

    ``needs_gpu`` holds for vLLM's build for CPUs too (``installed.computes_on_gpu``). ``needs_files``: a model is a
    folder of files on this disk, which vLLM reads. ``remote``: other servers answer, each for its own models, all at
    once; which those are is known only while it runs. ``check`` is what a worker asks at its start: it raises
    ConfigError where this engine cannot work here. ``event_loop`` makes the loop that it runs in.
    """

    name: str
    title: str
    serves: Callable[[str], bool]
    load: Callable[[Load], Awaitable[Loaded]]
    needs_gpu: bool
    needs_files: bool
    remote: bool = False
    check: Callable[[Settings], None] = lambda _settings: None
    event_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop

    def require(self, model: str) -> None:
        """Raise ConfigError where this engine does not serve the model."""
        if not self.serves(model):
            raise ConfigError(
                f"{self.title} does not serve the model {model}",
                hint=f"{worker_command(model)} --preload {shlex.quote(model)}",
            )


def _event_loop_of_vllm() -> asyncio.AbstractEventLoop:
    """Return uvloop's, as vLLM's own server has it: a twelfth less CPU for each request."""
    try:
        import uvloop
    except ImportError:  # a dependency of vLLM's, which names it so far
        return asyncio.new_event_loop()
    loop: asyncio.AbstractEventLoop = uvloop.new_event_loop()
    return loop


async def _load_vllm(load: Load) -> Loaded:
    from vbatch.engine import vllm

    return await vllm.load(
        model=load.model,
        path=load.path,
        aliases=load.aliases,
        adapters=load.adapters,
        args=load.args,
        shared_args=load.shared_args,
        visible_gpus=load.visible_gpus,
        title_prefix=load.title_prefix,
        log_dir=load.log_dir,
    )


async def _load_echo(load: Load) -> Loaded:
    from vbatch.engine import echo

    return await echo.load(model=load.model, latency=load.echo_latency)


async def _load_endpoint(load: Load) -> Loaded:
    settings = load.settings
    return await configured.load(
        settings.endpoints, max_inflight=settings.max_inflight, request_timeout=settings.request_timeout
    )


KINDS = {
    kind.name: kind
    for kind in (
        Kind(
            name="vllm",
            title="vLLM",
            serves=lambda model: model != ECHO_MODEL,
            load=_load_vllm,
            needs_gpu=True,
            needs_files=True,
            check=lambda _settings: vllm_names.require_version(),
            event_loop=_event_loop_of_vllm,
        ),
        Kind(
            name="echo",
            title="the echo engine",
            serves=lambda model: model == ECHO_MODEL,
            load=_load_echo,
            needs_gpu=False,
            needs_files=False,
        ),
        Kind(
            name="endpoint",
            title="the endpoint engine",
            serves=lambda _model: True,  # its servers say what they have
            load=_load_endpoint,
            needs_gpu=False,
            needs_files=False,
            remote=True,
            check=configured.require,
        ),
    )
}


def for_model(model: str) -> Kind:
    """Return the kind of engine that serves this model on this machine."""
    return next(kind for kind in KINDS.values() if kind.serves(model))


def may_serve(engine: str, model: str) -> bool:
    """Whether a worker with this engine may serve the model; an engine of another version's table may serve any."""
    return engine not in KINDS or KINDS[engine].serves(model)


def worker_command(model: str, *, default: str | None = None) -> str:
    """Return the command that starts a worker for this model; ``default`` is the engine of a plain run-worker."""
    if default in KINDS and KINDS[default].serves(model):
        return "vbatch run-worker"
    name = for_model(model).name
    return f"vbatch run-worker --engine {name}"
