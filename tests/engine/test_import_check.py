"""A good import of vLLM is not repeated until something of the installation changes; a bad one always is."""

from __future__ import annotations

import stat
from dataclasses import dataclass
from pathlib import Path

import msgspec
import pytest

from vbatch.engine import import_check, installed
from vbatch.engine.installed import Installed

GOOD = Installed(vllm="0.32.0", torch="2.13.0", guard_registered=True)


@dataclass
class Looks:
    """Counts the real looks, and says what they find."""

    found: Installed = GOOD
    count: int = 0

    def __call__(self) -> Installed:
        self.count += 1
        return self.found


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> Looks:
    looks = Looks()
    monkeypatch.setattr(installed, "look", looks)
    return looks


def test_a_good_import_is_not_repeated(looks: Looks, tmp_path: Path) -> None:
    """Mutant: ``fresh`` is ignored."""
    folder = tmp_path / "state"
    assert import_check.look(folder, driver="550.1") == (GOOD, False)
    assert import_check.look(folder, driver="550.1") == (GOOD, True)
    assert looks.count == 1
    assert stat.S_IMODE((folder / import_check.NAME).stat().st_mode) == 0o600
    assert import_check.look(folder, driver="550.1", fresh=True) == (GOOD, False)
    assert looks.count == 2


def test_a_change_repeats_it(looks: Looks, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutants: the key lacks the driver; the variables; the folders' times."""
    packages = tmp_path / "site-packages"
    packages.mkdir()
    monkeypatch.syspath_prepend(str(packages))

    def repeated(driver: str = "550.1") -> bool:
        return not import_check.look(tmp_path / "state", driver=driver)[1]

    assert repeated()
    assert not repeated()
    assert repeated(driver="550.2")
    assert not repeated(driver="550.2")
    monkeypatch.setenv("VLLM_TARGET_DEVICE", "cpu")
    assert repeated()
    assert not repeated()
    (packages / "numpy-2.5.dist-info").mkdir()
    assert repeated()
    assert not repeated()
    assert b"550.1" not in (tmp_path / "state" / import_check.NAME).read_bytes()


@pytest.mark.parametrize(
    "bad",
    [
        Installed(vllm="0.32.0", failures={"torchvision": "RuntimeError: …"}),
        Installed(hanging=True),
        Installed(vllm="0.9.0", unsupported="vLLM 0.9.0 is too old"),
        Installed(),
    ],
)
def test_a_bad_import_is_always_repeated(looks: Looks, tmp_path: Path, bad: Installed) -> None:
    """Also where an earlier one was good. Mutant: everything is kept."""
    import_check.look(tmp_path, driver=None)
    looks.found = bad
    assert import_check.look(tmp_path, driver=None, fresh=True) == (bad, False)
    looks.found = GOOD
    assert import_check.look(tmp_path, driver=None) == (GOOD, False)


@pytest.mark.parametrize(
    "written", [b"", b"{", b"[]", b'{"key": 1}', b"\xff", msgspec.json.encode({"key": "x"})]
)
def test_a_file_that_is_none_of_its_own(looks: Looks, tmp_path: Path, written: bytes) -> None:
    (tmp_path / import_check.NAME).write_bytes(written)
    assert import_check.look(tmp_path, driver=None) == (GOOD, False)
    assert import_check.look(tmp_path, driver=None) == (GOOD, True)


def test_a_folder_that_cannot_be_written(looks: Looks, tmp_path: Path) -> None:
    (tmp_path / "state").write_text("a file")
    assert import_check.look(tmp_path / "state", driver=None) == (GOOD, False)
