"""The real small model of the tests: SmolLM2-135M-Instruct, made once and kept for all later runs."""

from __future__ import annotations

import os
from pathlib import Path

import platformdirs
import pytest

from vbatch.engine import smollm

ENGINE_ARGS = smollm.flags()

# A folder that test runs share. Read before the tests drop the VBATCH_* variables of their environment.
CACHE = Path(os.environ.get("VBATCH_TEST_CACHE") or platformdirs.user_cache_path("vbatch"))


def model_folder() -> Path:
    """Return the model's folder; the first call on a machine fetches 93 MB and takes half a minute."""
    os.environ.update(smollm.ENVIRONMENT)
    return smollm.prepare(CACHE)


@pytest.fixture(scope="session")
def small_model() -> Path:
    """The folder of a real model that vLLM serves on two cores, and the environment that it needs."""
    pytest.importorskip("vllm", reason="the engine's own tests need vLLM: pip install 'vbatch[cpu]'")
    return model_folder()
