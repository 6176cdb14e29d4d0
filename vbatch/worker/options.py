"""What a worker is told to do: plain values, already validated by the configuration."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from vbatch.config import Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelOptions:
    """How one model is loaded: where its files are, and vLLM's own flags for it."""

    path: str | None = None
    args: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerOptions:
    """How a worker works. Engine flags apply in the order defaults, model, command line: the last one wins."""

    cache_dir: Path
    state_dir: Path
    engine: str = "vllm"
    gpu: int | None = None
    drain: bool = False
    preload: str | None = None
    max_inflight: int | None = None
    default_args: tuple[str, ...] = ()
    models: Mapping[str, ModelOptions] = field(default_factory=dict)
    extra_args: tuple[str, ...] = ()
    echo_latency: timedelta = timedelta(0)
    flush_interval: timedelta = timedelta(seconds=1)
    flush_results: int = 256
    lease: timedelta = timedelta(seconds=90)
    drain_limit: timedelta = timedelta(minutes=5)
    request_timeout: timedelta | None = None
    idle_unload: timedelta | None = timedelta(minutes=15)
    engine_stall: timedelta = timedelta(minutes=10)
    metrics_port: int | None = None
    reload_pause: timedelta = timedelta(seconds=1)

    @classmethod
    def of(cls, settings: Settings, *, drain: bool = False, extra_args: Sequence[str] = ()) -> WorkerOptions:
        """Translate the settings into what a worker is told."""
        return cls(
            cache_dir=settings.cache_dir,
            state_dir=settings.state_dir,
            engine=settings.engine,
            gpu=settings.gpu,
            drain=drain,
            preload=settings.preload,
            max_inflight=settings.max_inflight,
            default_args=settings.defaults.args,
            models={
                name: ModelOptions(path=model.path, args=model.args)
                for name, model in settings.models.items()
            },
            extra_args=tuple(extra_args),
            echo_latency=settings.echo_latency,
            flush_interval=settings.flush_interval,
            lease=settings.lease,
            drain_limit=settings.drain_limit,
            request_timeout=settings.request_timeout,
            idle_unload=settings.idle_unload,
            engine_stall=settings.engine_stall,
            metrics_port=settings.metrics_port,
        )

    def model_path(self, model: str) -> str:
        """Where vLLM finds this model: the configured path, a folder of the cache, or the name itself."""
        configured = self.models.get(model, ModelOptions()).path
        if configured is not None:
            return str(Path(configured).expanduser())
        cached = self.cache_dir / "models" / model
        return str(cached) if cached.is_dir() else model

    @property
    def shared_args(self) -> tuple[str, ...]:
        """Those of vLLM's flags that every model gets."""
        return (*self.default_args, *self.extra_args)

    def engine_args(self, model: str) -> tuple[str, ...]:
        """All of vLLM's flags for this model."""
        return (*self.default_args, *self.models.get(model, ModelOptions()).args, *self.extra_args)
