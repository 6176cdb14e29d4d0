"""The README's quick start for a GPU, with a small model on the CPU under the name of its model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs import readme
from tests.rigs.commands import Home
from tests.rigs.model import ENGINE_ARGS, small_model  # noqa: F401  (a fixture)


@pytest.mark.vllm
@pytest.mark.timeout(600)
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_lines_after_the_installation(home: Home, small_model: Path) -> None:  # noqa: F811
    """Mutant of the README: a request without messages."""
    install, *lines = next(block for block in readme.blocks("sh") if "[gpu]" in block).splitlines()
    assert install.endswith("source .venv/bin/activate")
    (home.path / "config.toml").write_text(
        f'[models."Qwen/Qwen3-0.6B"]\npath = "{small_model}"\nargs = {json.dumps(ENGINE_ARGS)}\n'
    )
    done = subprocess.run(
        ["bash", "-ec", "\n".join(lines)],
        env=home.env
        | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "VBATCH_CONFIG": str(home.path / "config.toml"),
        },
        cwd=home.path,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["custom_id"] == "1"
    assert answer["response"]["body"]["choices"][0]["message"]["content"]
