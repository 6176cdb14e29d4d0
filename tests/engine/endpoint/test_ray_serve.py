"""A real Ray Serve LLM on the CPU answers a batch through the engine ``endpoint``, dies in the middle, and returns.

python -m tests.rigs.with_ray        has an environment with Ray, and runs this there
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.rigs.commands import Home
from tests.rigs.model import small_model
from tests.rigs.real_server import MODEL, dies_and_returns

__all__ = ["small_model"]

pytest.importorskip("ray.serve", reason="needs Ray: python -m tests.rigs.with_ray", exc_type=ImportError)


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_real_deployment_dies_in_the_middle_and_returns(
    home: Home, small_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 lost, 0 doubled, no command typed. Mutant: connection errors as attempts: the batch ends with error lines."""
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    dies_and_returns(
        home,
        tmp_path,
        lambda port: [sys.executable, "-m", "tests.rigs.ray_serve", str(small_model), MODEL, str(port)],
    )
