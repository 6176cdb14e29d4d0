"""How much memory is free: of the machine, or of a control group with less."""

from __future__ import annotations

from pathlib import Path

import pytest

from vbatch.system import cgroups, memory
from vbatch.system.cgroups import GroupLimit
from vbatch.text import GIB


def test_of_this_machine() -> None:
    assert 0 < memory.free() <= memory.total()


@pytest.mark.parametrize("name", ["memory.current", "memory.usage_in_bytes"])
def test_of_a_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Mutant: the limit of the group without what it has taken."""
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal: 8388608 kB\nMemFree: 1 kB\nMemAvailable: 6291456 kB\n")
    monkeypatch.setattr(memory, "_MEMINFO", meminfo)
    monkeypatch.setattr(cgroups, "memory", lambda: None)
    assert (memory.total(), memory.free()) == (8 * GIB, 6 * GIB)
    (tmp_path / name).write_text(f"{GIB}\n")
    limit = GroupLimit(group="g", file=tmp_path / "memory.max", most=2 * GIB)
    monkeypatch.setattr(cgroups, "memory", lambda: limit)
    assert (memory.total(), memory.free()) == (2 * GIB, GIB)
