"""Which model a worker loads for a name: aliases and adapters of the configuration, and of vLLM's own flags."""

from __future__ import annotations

from pathlib import Path

import pytest

from vbatch import config
from vbatch.engine import models, names
from vbatch.engine.models import Availability
from vbatch.errors import ConfigError

FILE = """
[models."qwen-8b"]
path = "{folder}/base"
aliases = ["gpt-4o-mini"]
args = ["--seed", "1=2", "--lora-modules", "flagged={folder}/flagged", '{{"name": "json", "path": "/j"}}']
[models."qwen-8b".adapters]
styler = "{folder}/styler"
home = "~/home"
[models.other]
"""


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> config.Settings:
    (tmp_path / "base").mkdir()
    file = tmp_path / "config.toml"
    file.write_text(FILE.format(folder=tmp_path))
    monkeypatch.setenv("VBATCH_CONFIG", str(file))
    return config.load()


def test_who_answers_for_a_name(settings: config.Settings, tmp_path: Path) -> None:
    """Mutants: flags that are not read; words of another flag taken for adapters."""
    for name in ("qwen-8b", "gpt-4o-mini", "styler", "flagged", "json"):
        assert names.base(settings, name) == "qwen-8b"
    for name in ("other", "unknown", "1"):
        assert names.base(settings, name) == name
    assert names.adapter(settings, "styler") == f"{tmp_path}/styler"
    assert names.adapter(settings, "home") == str(Path.home() / "home")
    assert names.adapter(settings, "flagged") == f"{tmp_path}/flagged"
    assert names.adapter(settings, "qwen-8b") is None
    assert names.adapter(settings, "gpt-4o-mini") is None


@pytest.mark.parametrize(
    "flags", [("--lora-modules", "x=/x"), ("--lora_modules=x=/x",), ("--lora-mod", "a=/a", "x=/x")]
)
def test_an_adapter_of_the_command_line(settings: config.Settings, flags: tuple[str, ...]) -> None:
    """It belongs to the preloaded model. Of two models that are configured, none is taken by chance."""
    assert names.base(settings, "x", flags) == "x"
    preloading = settings.model_copy(update={"preload": "other"})
    assert names.base(preloading, "x", flags) == "other"
    assert names.adapter(preloading, "x", flags) == "/x"


def test_an_adapter_that_is_not_there(settings: config.Settings, tmp_path: Path) -> None:
    """Mutant: only its model is looked for; the load then refuses it."""
    assert models.find(settings, "gpt-4o-mini").availability is Availability.HERE
    missing = models.find(settings, "styler")
    assert missing.availability is Availability.MISSING
    assert missing.reason == f"there is no model folder {tmp_path}/styler"
    before = models.state(settings, "styler")
    (tmp_path / "styler").mkdir()
    assert models.find(settings, "styler").availability is Availability.HERE
    (tmp_path / "styler" / "adapter_config.json").write_text("{}")
    assert models.state(settings, "styler") != before


@pytest.mark.parametrize(
    "table",
    ['aliases = ["other"]', 'aliases = ["x", "x"]', 'aliases = ["x"]\n[models.a.adapters]\nx = "/x"'],
)
def test_a_name_belongs_to_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, table: str) -> None:
    """Mutant: the last one wins in silence."""
    file = tmp_path / "config.toml"
    file.write_text(f"[models.other]\n[models.a]\n{table}\n")
    monkeypatch.setenv("VBATCH_CONFIG", str(file))
    with pytest.raises(
        ConfigError, match=r"models: (other|x) is an alias or adapter of a, and already a name"
    ):
        config.load()
