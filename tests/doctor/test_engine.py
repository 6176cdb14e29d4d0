"""What is installed of vLLM, and whether the models are there: really imported, in a child."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rigs.nvml import GIB, StandInDriver
from vbatch import config
from vbatch.doctor.checks import engine
from vbatch.doctor.checks import models as check
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level
from vbatch.engine import installed, models
from vbatch.engine.installed import Installed


@pytest.fixture(autouse=True)
def empty_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("DATA", "STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))


def imports(monkeypatch: pytest.MonkeyPatch, found: Installed) -> dict[str, Finding]:
    monkeypatch.setattr(installed, "look", lambda: found)
    return {finding.id: finding for finding in engine._import(Facts(settings=config.load()))}


@pytest.mark.vllm
def test_the_vllm_of_this_machine() -> None:
    pytest.importorskip("vllm")
    found = installed.look()
    assert found.failures == {}
    assert found.vllm is not None
    assert found.vllm.startswith("0.")
    assert found.guard_registered


@pytest.mark.vllm
def test_a_torchvision_that_cannot_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PyPI's does beside the CPU build. Mutant: looking whether it is installed, without importing it."""
    (tmp_path / "torchvision.py").write_text(
        "raise RuntimeError('operator torchvision::nms does not exist')\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = imports(monkeypatch, installed.look())
    assert found["engine.torchvision"].level is Level.FAIL
    assert "torchvision::nms" in found["engine.torchvision"].evidence[0]
    assert found["engine.torchvision"].commands[0].startswith("pip uninstall --yes torchvision")


def test_a_vllm_that_crashes_at_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: importing in this process."""
    (tmp_path / "vllm.py").write_text("import os; os.abort()\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert imports(monkeypatch, installed.look())["engine.import"].level is Level.FAIL


def test_without_vllm(monkeypatch: pytest.MonkeyPatch) -> None:
    found = imports(monkeypatch, Installed(guard_registered=True))
    assert found["engine.missing"].level is Level.WARN


def test_an_import_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datetime import timedelta

    (tmp_path / "torchaudio.py").write_text("import time; time.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert installed.look(timedelta(seconds=2)).hanging


@pytest.mark.parametrize(("version", "finding"), [("0.32.0", "engine.import"), ("0.99.1", "engine.version")])
def test_the_version(monkeypatch: pytest.MonkeyPatch, version: str, finding: str) -> None:
    found = imports(monkeypatch, Installed(vllm=version, torch="2.13.0", guard_registered=True))
    assert set(found) == {finding}


@pytest.mark.parametrize(
    ("cuda", "level"), [("12.9", None), ("13.0", None), ("14.1", Level.FAIL), (None, Level.WARN)]
)
def test_torch_against_the_driver(
    driver: StandInDriver, monkeypatch: pytest.MonkeyPatch, cuda: str | None, level: Level | None
) -> None:
    """The stand-in driver supports CUDA 13.0."""
    driver.has()
    found = imports(monkeypatch, Installed(vllm="0.32.0", torch="2.13.0", cuda=cuda, guard_registered=True))
    assert (found["engine.cuda"].level if "engine.cuda" in found else None) is level


def test_without_the_guard(monkeypatch: pytest.MonkeyPatch) -> None:
    assert imports(monkeypatch, Installed(vllm="0.32.0", torch="2"))["engine.guard"].level is Level.FAIL


# Models.


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A complete model of two shards, configured as ``m``."""
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "tokenizer.json").write_text("{}")
    shards = {f"layer{n}": f"model-0000{n}-of-00002.safetensors" for n in (1, 2)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    for name in shards.values():
        (folder / name).write_bytes(b"x" * 1000)
    file = tmp_path / "config.toml"
    file.write_text(f'[models.m]\npath = "{folder}"\n')
    monkeypatch.setenv("VBATCH_CONFIG", str(file))
    return folder


def looked_at() -> dict[str, Finding]:
    return {finding.id: finding for finding in check._models(Facts(settings=config.load()))}


def test_a_complete_model(folder: Path) -> None:
    assert looked_at()["engine.model"].level is Level.OK


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "model-00002-of-00002.safetensors"])
def test_a_model_that_is_not_complete(folder: Path, name: str) -> None:
    """Mutant: looking for the folder alone."""
    (folder / name).unlink()
    found = looked_at()["engine.model"]
    assert found.level is Level.FAIL
    assert (name if name != "tokenizer.json" else "tokenizer") in found.what


def test_weights_in_a_second_format_need_not_be_there(folder: Path) -> None:
    """Its index comes with every download. Mutant: what any index names must be there, and counts."""
    shards = {"layer1": "pytorch_model-00001-of-00001.bin"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": shards}))
    (folder / "consolidated.safetensors").write_bytes(b"x" * 2000)
    assert looked_at()["engine.model"].level is Level.OK
    assert models.look(folder).weights == 2000, "the two shards that the first index names"
    for shard in folder.glob("model*.safetensors*"):
        shard.unlink()
    assert models.look(folder).weights == 2000, "the one file that no index names"
    assert not models.look(folder).missing


def test_an_index_that_is_torn(folder: Path) -> None:
    (folder / "model.safetensors.index.json").write_text('{"weight_map": {')
    assert looked_at()["engine.model"].level is Level.FAIL


def test_a_model_that_would_be_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setenv("VBATCH_PRELOAD", "some/model")
    assert looked_at()["engine.model"].level is Level.WARN
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert looked_at()["engine.model"].level is Level.FAIL


def test_a_model_in_the_hubs_cache(tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshot = tmp_path / "hf" / "hub" / "models--some--model" / "snapshots" / "abc"
    snapshot.parent.mkdir(parents=True)
    folder.rename(snapshot)
    monkeypatch.delenv("VBATCH_CONFIG")
    monkeypatch.setenv("VBATCH_PRELOAD", "some/model")
    assert looked_at()["engine.model"].level is Level.OK
    next(snapshot.glob("*.safetensors")).unlink()
    (snapshot / "model-00001-of-00002.safetensors").symlink_to("../../blobs/gone.incomplete")
    assert looked_at()["engine.model"].level is Level.FAIL


def test_weights_that_are_too_big(
    folder: Path, driver: StandInDriver, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 GiB (a sparse file) on a card of 15.57."""
    driver.has()
    with (folder / "model-00001-of-00002.safetensors").open("r+b") as stream:
        stream.truncate(20 * GIB)
    assert looked_at()["engine.fit"].level is Level.FAIL
    with (folder / "model-00001-of-00002.safetensors").open("r+b") as stream:
        stream.truncate(7 * GIB)
    assert "engine.fit" not in looked_at()
