"""A home and a server for the tests of ``vbatch serve``, on SQLite: most of them have nothing to do with the store."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.commands import Home
from tests.rigs.serving import Served, served


@pytest.fixture
def own(tmp_path: Path) -> Home:
    """A home on a fresh SQLite store."""
    return Home(tmp_path, f"sqlite:///{tmp_path / 'store' / 'vbatch.db'}")


@pytest.fixture
def server(own: Home) -> Iterator[Served]:
    """A server on that store."""
    with served(own) as running:
        yield running
