"""``vbatch doctor models``: which models fit the card, with how much context, or what would make them fit."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.doctor.test_driver import gpu_build  # noqa: F401  (a fixture)
from tests.gpu_memory.test_fit import QWEN3_8B
from tests.rigs.commands import Home
from tests.rigs.nvml import GIB, StandInDriver
from vbatch import config
from vbatch.doctor import registry
from vbatch.doctor.checks import fits
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level


@pytest.fixture(autouse=True)
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A configured model of 5 GiB, ``small``, and one of 9 GiB in 8 bits in the hub's cache, ``some/model``."""
    for name in ("DATA", "STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    model(tmp_path / "small", 5)
    model(tmp_path / "hub" / "models--some--model" / "snapshots" / "abc", 9, quantized="fp8")
    (tmp_path / "config.toml").write_text(f'[models.small]\npath = "{tmp_path / "small"}"\n')
    monkeypatch.setenv("VBATCH_CONFIG", str(tmp_path / "config.toml"))
    return tmp_path


def model(folder: Path, size: int, *, quantized: str | None = None) -> None:
    """Make a model of so many GiB: sparse files."""
    folder.mkdir(parents=True)
    more = {"quantization_config": {"quant_method": quantized}} if quantized else {}
    (folder / "config.json").write_text(json.dumps(QWEN3_8B | more))
    (folder / "tokenizer.json").write_text("{}")
    with (folder / "model.safetensors").open("wb") as stream:
        stream.truncate(size * GIB)


def answers() -> dict[str, Finding]:
    return {finding.what.split()[0]: finding for finding in fits._fits(Facts(settings=config.load()))}


def test_each_model_is_compared_with_the_card(driver: StandInDriver, models: Path) -> None:
    """Mutants: configured models alone; the size of the weights alone."""
    driver.has()
    found = answers()
    assert found["small"].id == "models.fit"
    assert "5.0 GiB of weights, 144 KiB of KV cache per token, room for about" in found["small"].what
    assert "(a request may have 40,960)" in found["small"].what
    hub = found["some/model"]
    assert (hub.id, hub.level) == ("models.context", Level.INFO)
    assert "9.0 GiB of weights (fp8)" in hub.what
    assert "--kv-cache-dtype fp8; or --max-model-len" in hub.why
    assert hub.commands[0] == "vbatch run-worker -- --kv-cache-dtype fp8"


def test_a_model_that_is_too_big(
    driver: StandInDriver, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A warning for a model that the worker is asked for. Mutant: that level for every file on the disk."""
    driver.has()
    model(models / "big", 30)
    monkeypatch.setenv("VBATCH_PRELOAD", str(models / "big"))
    found = answers()[str(models / "big")]
    assert (found.id, found.level) == ("models.too_large", Level.WARN)
    assert "does not fit GPU 0 (15.6 GiB)" in found.what
    assert "4 GPUs like this one (--tensor-parallel-size 4)" in found.why
    assert "quantized (AWQ, GPTQ, FP8)" in found.why


def test_all_gpus_that_a_worker_may_use(driver: StandInDriver, models: Path) -> None:
    """Mutants: the first GPU alone; the whole model on each of two; the larger of two that share a model."""
    big, small = f"total {80 * GIB}", f"total {8 * GIB}"
    driver.says("gpu", big, "gpu", small, "gpu", big)
    each = [finding.what for finding in _found() if finding.what.startswith("some/model")]
    assert [what.split(":")[0] for what in each] == [
        "some/model fits GPU 0",
        "some/model does not fit GPU 1 (8.0 GiB)",
    ]
    both = [finding.what for finding in _found(gpu="0,1") if finding.what.startswith("some/model")]
    assert [what.split(":")[0] for what in both] == ["some/model fits GPU 1 and 1 like it only with less"]
    assert "4.5 GiB of weights" in both[0]
    driver.says(*["gpu", small] * 4)
    alone = next(finding for finding in _found(gpu="3") if finding.what.startswith("some/model"))
    assert "vbatch run-worker --gpu 0,1" in alone.commands


def _found(**settings: str) -> list[Finding]:
    return list(fits._fits(Facts(settings=config.load(**settings))))


def test_what_cannot_be_said(driver: StandInDriver, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: a card without memory; an incomplete model called small; a build for CPUs measured by a card."""
    (models / "small" / "tokenizer.json").unlink()
    driver.says("gpu", "memory 3")
    assert "is not complete: the tokenizer missing" in answers()["small"].what
    assert answers()["some/model:"].why == "no GPU reports its memory here"
    driver.has()
    monkeypatch.setattr("vbatch.engine.installed.computes_on_gpu", lambda: False)
    assert "9.0 GiB of weights (fp8), 144 KiB" in answers()["some/model:"].what
    (models / "config.toml").write_text('[defaults]\nargs = ["--config", "nowhere.yaml"]\n')
    assert "--config" in answers()["some/model:"].why
    monkeypatch.setenv("VBATCH_PRELOAD", "/no/such/model")
    assert answers()["/no/such/model"].what == "/no/such/model is not on this disk"


def test_a_model_in_one_file(driver: StandInDriver, models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    driver.has()
    (models / "m.gguf").write_bytes(b"GGUF")
    monkeypatch.setenv("VBATCH_PRELOAD", str(models / "m.gguf"))
    found = answers()[str(models / "m.gguf")]
    assert found.id == "models.fit"
    assert "KV cache unknown" in found.what


def test_it_answers_only_where_it_is_named(tmp_path: Path) -> None:
    """A person with thirty models in a cache would not read the rest. Mutant: with every doctor."""
    home = Home(tmp_path, f"sqlite:///{tmp_path / 'vbatch.db'}")
    assert not any(check.name == "models.fit" for check in registry.chosen(()))
    assert [check.name for check in registry.chosen(("models",))] == ["models.fit"]
    assert "\nModels\n" in "\n" + home.run("doctor", "models").stdout


def test_nothing_to_compare(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VBATCH_ENGINE", "echo")
    assert answers()["the"].level is Level.SKIP
