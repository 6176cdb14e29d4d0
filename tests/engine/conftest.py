"""A real engine, started once for all tests that ask it something."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass
from multiprocessing import active_children
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import pytest

from tests.rigs.model import ENGINE_ARGS, small_model
from vbatch.engine import Reply, vllm
from vbatch.system import descendants

__all__ = ["small_model"]

T = TypeVar("T")

MODEL = "smol"


@dataclass(frozen=True)
class Loaded:
    """A real engine and the event loop that it belongs to."""

    engine: vllm.VllmEngine
    runner: asyncio.Runner

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run this in the engine's event loop."""
        return self.runner.run(work)

    def post(self, url: str, **body: object) -> tuple[Reply, Any]:
        """Ask the engine; return the reply and its decoded body."""
        reply = self.run(self.engine.post(url, msgspec.json.encode(body)))
        return reply, msgspec.json.decode(reply.body)


TITLE_PREFIX = "vbatch-0123456789abcdef"


def started() -> list[int]:
    """Return the pids of what the loads of this process have started, the engine's own process first."""
    return [
        process.pid for process in descendants.family([child.pid for child in active_children() if child.pid])
    ]


async def at_work(engine: vllm.VllmEngine) -> None:
    """Wait until the engine produces tokens."""
    before = engine.progress
    while engine.progress < before + 3:  # noqa: ASYNC110
        await asyncio.sleep(0.05)


@pytest.fixture(scope="package")
def loaded(small_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """A real vLLM with a real small model."""
    with asyncio.Runner() as runner:
        engine = runner.run(
            vllm.load(
                model=MODEL,
                path=str(small_model),
                args=ENGINE_ARGS,
                title_prefix=TITLE_PREFIX,
                log_dir=tmp_path_factory.mktemp("engine-logs"),
            )
        )
        yield Loaded(engine, runner)
        runner.run(engine.close())
