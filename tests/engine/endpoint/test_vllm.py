"""A real ``vllm serve`` on the CPU answers a batch through the engine ``endpoint``, dies in the middle, and returns."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.rigs.commands import Home
from tests.rigs.model import ENGINE_ARGS, small_model
from tests.rigs.real_server import MODEL, dies_and_returns

__all__ = ["small_model"]


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_real_server_dies_in_the_middle_and_returns(home: Home, small_model: Path, tmp_path: Path) -> None:
    """0 lost, 0 doubled, no command typed. Mutant: connection errors as attempts: the batch ends with error lines."""

    def command(port: int) -> list[str]:
        # Not the command `vllm`: that of the CPU build does not find its own distribution.
        options = [
            "--model",
            str(small_model),
            *ENGINE_ARGS,
            "--served-model-name",
            MODEL,
            "--dtype",
            "float32",
        ]
        return [
            *(sys.executable, "-m", "vllm.entrypoints.openai.api_server", *options),
            *("--host", "127.0.0.1", "--port", str(port)),
        ]

    dies_and_returns(home, tmp_path, command)
