"""A home per test, on each kind of store."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.rigs.commands import Home


@pytest.fixture
def home(tmp_path: Path, database_url: str) -> Home:
    """A user's home whose store is SQLite or PostgreSQL."""
    return Home(tmp_path, database_url)
