"""The gates that need no judgement: layers, bans, style and types."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from vbatch import batches

ROOT = Path(__file__).parent.parent
BIN = Path(sys.executable).parent

GATES: dict[str, list[str | Path]] = {
    "layers": [BIN / "lint-imports"],
    "lint": [BIN / "ruff", "check", "."],
    "format": [BIN / "ruff", "format", "--check", "."],
    "types": [sys.executable, "-m", "mypy"],
}


@pytest.mark.gate
@pytest.mark.parametrize("gate", GATES)
def test_gate(gate: str) -> None:
    done = subprocess.run(
        GATES[gate], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    assert done.returncode == 0, done.stdout


def test_the_names_of_batches_are_the_same_for_people_and_for_checkers_of_types() -> None:
    """Mutant: a name in one of the two lists alone."""
    source = (ROOT / "vbatch" / "batches" / "__init__.py").read_text()
    checked = {
        alias.name: node.module
        for block in ast.parse(source).body
        if isinstance(block, ast.If) and block.orelse == [] and isinstance(block.test, ast.Name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert checked == batches._HOME_OF
