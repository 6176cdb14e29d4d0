"""A guest machine for the tests that need one, or the reason why this host cannot have it."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from tests.rigs import machine
from tests.rigs.guest import Guest, guest
from tests.rigs.model import small_model

__all__ = ["small_model"]

_unusable = cache(machine.unusable)


@pytest.fixture(name="guest")
def make_guest(tmp_path: Path) -> Iterator[Guest]:
    """A booted machine with a person on it and no service yet."""
    if (reason := _unusable()) is not None:
        pytest.skip(f"no guest machine here: {reason}")
    with guest(tmp_path) as made:
        yield made
