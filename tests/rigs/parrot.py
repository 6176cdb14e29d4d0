"""An engine for tests that need several models without vLLM: it echoes as the echo engine does, for any model.

A kind of its own in the table of kinds; no option or variable of vbatch reaches it.
"""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

from vbatch.engine import Loaded
from vbatch.engine.echo import EchoEngine
from vbatch.engine.kinds import KINDS, Kind, Load

NAME = "parrot"
KILLED = "killed parrot"  # its crashes are those of an engine that SIGKILL has ended


def parrot(model: str, *others: str, latency: timedelta = timedelta(0)) -> EchoEngine:
    """Make an engine that answers for this model, and for the others."""
    return EchoEngine(model, latency, *others)


async def _load(load: Load) -> Loaded:
    """Load the adapters too: those whose place is a folder."""
    found = [name for name, place in load.adapters.items() if Path(place).is_dir()]
    engine = parrot(load.model, *load.aliases, *found, latency=load.echo_latency)
    engine.refused = {
        name: f"no adapter in {load.adapters[name]}" for name in load.adapters.keys() - set(found)
    }
    return engine


class _Killed(EchoEngine):
    killed = True


async def _load_killed(load: Load) -> Loaded:
    return _Killed(load.model, load.echo_latency)


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
    KINDS[KILLED] = replace(PARROT, name=KILLED, load=_load_killed)
