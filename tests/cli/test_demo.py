"""The demo: real answers of a real model, in a store of its own."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import Cli
from tests.rigs.commands import VBATCH
from tests.rigs.model import small_model  # noqa: F401  (a fixture)


@pytest.mark.vllm
def test_the_demo_answers_and_leaves_the_users_store_alone(cli: Cli, small_model: Path) -> None:  # noqa: F811
    cache = cli.folder.parent / "cache"
    (cache / "models").mkdir(parents=True)
    (cache / "models" / small_model.name).symlink_to(small_model)
    done = subprocess.run(
        [*VBATCH, "demo"],
        env=os.environ
        | {"VBATCH_CACHE_DIR": str(cache), "VBATCH_DATABASE_URL": "postgresql://nobody/nowhere"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "What is the capital of France?\n  " in done.stdout
    assert "Paris" in done.stdout
    assert "refused with 400: max_tokens=100000" in done.stdout
    assert "vbatch submit prompts.jsonl -m MODEL" in done.stdout
    demo = cache / "demo"
    assert (demo / "chat.output.jsonl").read_text().count("\n") == 16
    assert (demo / "chat.errors.jsonl").read_text().count("\n") == 1
    assert (demo / "completions.output.jsonl").read_text().count("\n") == 4
    assert "Traceback" not in done.stderr
