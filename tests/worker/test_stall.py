"""What counts as an engine that hangs."""

from __future__ import annotations

from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.rigs.clock import Clock
from vbatch.engine import Engine
from vbatch.worker import stall
from vbatch.worker.stall import Stall

LIMIT = timedelta(seconds=60)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(stall, "time", clock)
    return clock


@pytest.fixture
def engine() -> Any:
    """What a stall looks at: how far an engine is."""
    return SimpleNamespace(progress=7)


def looks(watched: Stall, clock: Clock, *gaps: float, busy: bool = True) -> list[str | None]:
    """Look after each of these gaps, in seconds."""
    found = []
    for gap in gaps:
        clock.now += gap
        found.append(watched.cause(busy=busy))
    return found


def test_an_engine_that_has_work_and_does_nothing(clock: Clock, engine: Any) -> None:
    watched = Stall(cast(Engine, engine), limit=LIMIT)
    assert looks(watched, clock, *[1.0] * 60) == [None] * 60
    assert looks(watched, clock, 1.0) == ["the engine made no progress for 61 s"]


def test_progress_and_idleness_begin_a_new_count(clock: Clock, engine: Any) -> None:
    """Mutants: progress changes nothing; an engine without work is counted."""
    watched = Stall(cast(Engine, engine), limit=LIMIT)
    looks(watched, clock, *[1.0] * 50)
    engine.progress += 1
    looks(watched, clock, *[1.0] * 50)
    looks(watched, clock, 1.0, busy=False)
    assert looks(watched, clock, *[1.0] * 59) == [None] * 59


def test_a_machine_that_slept_has_no_engine_that_hangs(clock: Clock, engine: Any) -> None:
    """A stopped process or a paused virtual machine: all of it stood still. Mutant: the whole gap counts."""
    watched = Stall(cast(Engine, engine), limit=LIMIT)
    assert looks(watched, clock, 1.0, 3600.0, 1.0) == [None] * 3
    engine.progress += 1
    assert looks(watched, clock, 3600.0, 1.0) == [None] * 2
