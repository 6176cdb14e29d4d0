"""Adapters (LoRA) on the real vLLM: one engine answers for the model, an alias and its adapters."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.rigs import adapter
from tests.rigs.commands import Home, Lines
from tests.rigs.model import ENGINE_ARGS, small_model  # noqa: F401  (a fixture)
from vbatch.engine import smollm
from vbatch.errors import ExitCode

pytestmark = pytest.mark.vllm


def question(name: str, model: str) -> dict[str, Any]:
    """One question, always the same."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": "Name three colours."}],
        "max_tokens": 12,
        "temperature": 0,
    }
    return {"custom_id": name, "method": "POST", "url": "/v1/chat/completions", "body": body}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_model_an_alias_and_adapters_in_one_load(home: Home, small_model: Path) -> None:  # noqa: F811
    """From the configuration and from vLLM's flags; one that is damaged waits alone, with its reason.

    On a CPU the model itself must not get the weights of an adapter (``max_loras``).

    Mutants: ``--lora-modules`` given to vLLM's start, which then refuses the model for the damaged one; the flags'
    list in place of the configured one; the rank of the adapter not allowed.
    """
    home.extra |= smollm.ENVIRONMENT
    styler = adapter.make(home.path / "styler", small_model)
    other = adapter.make(home.path / "other", small_model, targets=("v_proj",))
    (damaged := home.path / "damaged").mkdir()
    (damaged / "adapter_config.json").write_text("{}")
    folder = home.path / "config" / "vbatch"
    folder.mkdir(parents=True)
    flags = json.dumps([*ENGINE_ARGS, "--dtype", "float32", "--lora-modules", f"other={other}"])
    (folder / "config.toml").write_text(
        f'[models."{smollm.NAME}"]\npath = "{small_model}"\nargs = {flags}\naliases = ["small"]\n'
        f'[models."{smollm.NAME}".adapters]\nstyler = "{styler}"\ndamaged = "{damaged}"\n'
    )
    names = {"base": smollm.NAME, "alias": "small", "styler": "styler", "other": "other"}
    batch = home.submit([question(name, model) for name, model in names.items()])
    waiting = home.submit([question("x", "damaged")], name="waiting")
    done = home.run("run-worker", "--drain", check=False)
    assert done.returncode == ExitCode.ENGINE_UNAVAILABLE, done.stderr
    assert done.stderr.count("engine.loading") == 1
    lines = Lines.of(home.batch(batch))
    assert not lines.errors
    texts = lines.answers
    assert texts["base"] == texts["alias"], texts
    assert len({texts["base"], texts["styler"], texts["other"]}) == 3
    document: dict[str, Any] = home.batch(waiting)
    assert document["request_counts"] == {"total": 1, "completed": 0, "failed": 0}
    assert "the adapter damaged cannot be loaded" in document["blocked"]["reason"]
