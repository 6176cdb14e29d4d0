"""An engine for tests that need several models without vLLM: it echoes as the echo engine does, for any model.

A kind of its own in the table of kinds; no option or variable of vbatch reaches it.
"""

from __future__ import annotations

from datetime import timedelta

from vbatch.engine import Engine
from vbatch.engine.echo import EchoEngine
from vbatch.engine.kinds import KINDS, Kind, Load

NAME = "parrot"


def parrot(model: str, *, latency: timedelta = timedelta(0)) -> Engine:
    """Make an engine that answers for this model."""
    return EchoEngine(model, latency)


async def _load(load: Load) -> Engine:
    return parrot(load.model, latency=load.echo_latency)


PARROT = Kind(
    name=NAME,
    title="a parrot",
    serves=lambda _model: True,
    load=_load,
    needs_gpu=False,
    needs_files=False,
)


def let_in() -> None:
    """Make it known to this process."""
    KINDS[NAME] = PARROT
