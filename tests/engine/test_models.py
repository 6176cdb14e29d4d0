"""What is known of a model before it is loaded: where it is, whether it can be fetched, what it is like."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from vbatch.config import Settings, load
from vbatch.engine import models
from vbatch.engine.models import Availability

NAMES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "VLLM_USE_MODELSCOPE", "HF_HUB_CACHE")


@pytest.fixture
def settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Those of an empty home whose hub cache is ``hub``."""
    for name in ("DATA", "STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.chdir(tmp_path)
    return load()


def cached(folder: Path, name: str) -> Path:
    """A model in the hub's cache."""
    snapshot = folder / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / "0123abcd"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    return snapshot


@pytest.mark.parametrize(
    ("place", "online", "offline"),
    [
        ("Qwen/Qwen3-8B", "remote", "missing"),
        ("Qwen/Qwen3-8B-GGUF:Q4_K_M", "remote", "missing"),
        ("s3://bucket/model", "remote", "remote"),  # vLLM's object storage
        ("/nowhere/model", "missing", "missing"),
        ("a/b/c", "missing", "missing"),
        ("m" * 500, "missing", "missing"),  # longer than a file's name may be, and than the hub's
        ("m/" * 240, "missing", "missing"),
        ("qwen\ud800", "missing", "missing"),
    ],
)
def test_what_is_not_here(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, place: str, online: str, offline: str
) -> None:
    """A request may name anything. Mutant: ``Path.is_dir``, which raises; one request then ends every worker."""
    found = models.find(settings, place)
    assert found.availability == online
    assert len(found.reason) < 300
    assert models.state(settings, place) == models.state(settings, place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert models.find(settings, place).availability == offline


def test_what_is_here(settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a file, a name in either cache. Mutant: one of these sources left out; the model is then blocked."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    cached(tmp_path, "Qwen/Qwen3-8B")
    (settings.cache_dir / "models" / "own").mkdir(parents=True)
    (tmp_path / "folder").mkdir()
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    for name in ("Qwen/Qwen3-8B", "Qwen/Qwen3-8B:Q4_K_M", "own", str(tmp_path / "folder"), "model.gguf"):
        assert models.find(settings, name).availability is Availability.HERE, name


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("TRANSFORMERS_OFFLINE", "yes", "missing"),
        ("HF_HUB_OFFLINE", "ON", "missing"),
        ("HF_HUB_OFFLINE", "0", "remote"),
    ],
)
def test_offline_is_what_the_hubs_library_takes_for_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, expected: str
) -> None:
    monkeypatch.setenv(variable, value)
    assert models.find(settings, "Qwen/Qwen3-8B").availability == expected


def test_a_name_of_modelscope_is_not_judged(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_USE_MODELSCOPE", "True")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = models.find(settings, "Qwen/Qwen3-8B")
    assert (found.availability, found.hint("Qwen/Qwen3-8B")) == (Availability.REMOTE, None)


def test_the_nearest_name_is_one_that_is_here(settings: Settings, tmp_path: Path) -> None:
    """Mutant: what a failed download left behind is proposed."""
    cached(tmp_path, "HuggingFaceTB/SmolLM2-135M-Instruct")
    (tmp_path / "hub" / "models--SmolLM2-135M-Instruct" / "refs").mkdir(parents=True)
    own = settings.cache_dir / "models" / "mine" / "Qwen3-8B"
    own.mkdir(parents=True)
    (own / "config.json").write_text("{}")
    short = models.find(settings, "SmolLM2-135M-Instruct")
    assert short.nearest == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert models.find(settings, "qwen-8b").nearest == "mine/Qwen3-8B"
    assert models.find(settings, "/nowhere/else").nearest is None


def test_a_place_changes_when_its_files_do(settings: Settings, tmp_path: Path) -> None:
    """Mutant: only folders looked at."""
    before = models.state(settings, "Qwen/Qwen3-8B")
    snapshot = cached(tmp_path, "Qwen/Qwen3-8B")
    appeared = models.state(settings, "Qwen/Qwen3-8B")
    (snapshot / "model.safetensors").write_bytes(b"x")
    assert len({before, appeared, models.state(settings, "Qwen/Qwen3-8B")}) == 3
    file = str(tmp_path / "model.gguf")
    before = models.state(settings, file)
    Path(file).write_bytes(b"GGUF")
    assert models.state(settings, file) != before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read every folder")
def test_a_folder_that_may_not_be_read_is_not_one_that_is_missing(settings: Settings, tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    (closed / "model").mkdir(parents=True)
    closed.chmod(0)
    try:
        found = models.find(settings, str(closed / "model"))
        assert (found.availability, found.refused) == (Availability.MISSING, True)
        assert "may not read" in found.reason
    finally:
        closed.chmod(0o700)
