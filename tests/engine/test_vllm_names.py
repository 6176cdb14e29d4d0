"""Which vLLM works: versions that are too old, names that are missing, and what a worker and doctor report of them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.rigs.commands import Home, chats
from vbatch.engine import vllm_names
from vbatch.errors import ExitCode

PIP = "pip install --upgrade 'vbatch["


def stand_in(folder: Path, version: str, *, metadata: bool = True) -> str:
    """Make a package ``vllm`` of this version that has nothing but it; return the folder for PYTHONPATH."""
    package = folder / "vllm"
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "version.py").write_text(f"__version__ = {version!r}\n")
    if metadata:
        about = folder / f"vllm-{version}.dist-info"
        about.mkdir()
        (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {version}\n")
    return str(folder)


@pytest.mark.vllm
def test_the_installed_one_has_all_names() -> None:
    pytest.importorskip("vllm")
    names = vllm_names.load()
    assert not vllm_names.older(names.__version__)
    assert not vllm_names.newer(names.__version__)


@pytest.mark.vllm
def test_a_name_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: attributes that are not looked at, so that the first load fails in Python's words."""
    pytest.importorskip("vllm")
    places = {
        "UsageContext": (("vllm.usage.usage_lib",), ("LLM_CLASS", "GONE")),
        "moved": (("vllm.no_such_module", "vllm.version"), ()),
    }
    monkeypatch.setattr(vllm_names, "_PLACES", places)
    vllm_names.load.cache_clear()
    with pytest.raises(vllm_names.UnsupportedVllm) as raised:
        vllm_names.load()
    vllm_names.load.cache_clear()
    assert raised.value.missing == ("vllm.usage.usage_lib.UsageContext.GONE", "vllm.version.moved")
    assert "it has no vllm.usage.usage_lib.UsageContext.GONE, vllm.version.moved" in str(raised.value)
    assert raised.value.hint is not None
    assert raised.value.hint.startswith(PIP)


@pytest.mark.parametrize(("version", "metadata"), [("0.20.0", True), ("0.31.1", False), ("0.33.0+cpu", True)])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_worker_ends_before_it_loads(home: Home, tmp_path: Path, version: str, *, metadata: bool) -> None:
    """With the pip command. The last one has the number and nothing else.

    Mutants: no check of the version at the start; an ImportError that becomes the reason why a model is blocked.
    """
    folder = tmp_path / "packages"
    folder.mkdir()
    paths = (stand_in(folder, version, metadata=metadata), os.environ.get("PYTHONPATH"))
    home.extra["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
    (model := home.path / "model").mkdir()
    (model / "config.json").write_text("{}")
    batch = home.submit(chats(2, model=str(model)))
    done = home.run("run-worker", "--drain", check=False)
    assert done.returncode == ExitCode.MISCONFIGURED, done.stderr
    assert f"error: vLLM {version} is installed; vbatch works with vLLM {vllm_names.TESTED}" in done.stderr
    assert f"hint: {PIP}" in done.stderr
    assert "Traceback" not in done.stderr
    assert home.batch(batch)["request_counts"] == {"total": 2, "completed": 0, "failed": 0}
    doctor = json.loads(home.run("doctor", "engine.import", "--json", check=False).stdout)
    (finding,) = [found for found in doctor["findings"] if found["id"] == "engine.unsupported"]
    assert finding["level"] == "fail"
    assert finding["commands"][0].startswith(PIP)


@pytest.mark.parametrize(
    ("version", "older", "newer"),
    [
        ("0.20.0", True, False),
        ("0.31.9+cpu", True, False),
        ("0.32.0", False, False),
        ("0.33.1", False, False),
        ("0.34.0rc1", False, True),
        ("1.0", False, True),
        ("dev", False, False),
        ("0.0.1.dev7", False, False),
    ],
)
def test_versions(version: str, *, older: bool, newer: bool) -> None:
    assert (vllm_names.older(version), vllm_names.newer(version)) == (older, newer)
