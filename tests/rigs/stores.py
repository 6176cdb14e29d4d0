"""A fresh store of either kind: of both in each run, or of PostgreSQL in long runs alone."""

from __future__ import annotations

from pathlib import Path

import pytest


def fresh_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """Return the URL of a fresh store of the kind that this fixture is parametrized with."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'store' / 'vbatch.db'}"
    url: str = request.getfixturevalue("postgresql_url")
    return url


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.long)])
def mostly_sqlite(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """For files about what lies above the store: ``from tests.rigs.stores import mostly_sqlite as database_url``."""
    return fresh_url(request, tmp_path)
