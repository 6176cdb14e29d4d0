"""Commands that read are quick: they import what they need, and nothing is collected or searched meanwhile.

How quick is measured by ``python -m tests.benchmarks.bench_commands``.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.rigs.commands import chats

# What a look at the queue needs not: the modules of other operations, of engines, of the network.
NEEDLESS = {
    "vbatch.batches.submit",
    "vbatch.batches.make",
    "vbatch.batches.tables",
    "vbatch.jsonl",
    "vbatch.outbound",
    "vbatch.outbound.fetch",
    "vbatch.engine.models",
    "vbatch.engine.vllm",
    "sqlmodel",
    "psycopg",
    "psutil",
    "alembic",
    "http.client",
}


def python(*arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, check=False, env=os.environ | variables
    )


@pytest.fixture
def stored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DATA", "STATE", "CACHE", "CONFIG"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(tmp_path / name))
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in chats(1)))
    done = python("-m", "vbatch", "submit", str(file), "-q")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("command", [["list"], ["status", "last"]])
def test_a_look_imports_little(stored: None, command: list[str]) -> None:
    """Mutants: an eager vbatch.batches; models at the top of batches/workers.py."""
    done = python("-X", "importtime", "-m", "vbatch", *command)
    assert done.returncode == 0, done.stderr
    imported = {line.rpartition("|")[2].strip() for line in done.stderr.splitlines() if "|" in line}
    assert imported & NEEDLESS == set()
    assert "vbatch.store.catalog" in imported


def test_operations_are_not_the_modules_of_their_names() -> None:
    """Whichever was imported first. Mutant: a package without ``__setattr__``."""
    code = (
        "import vbatch.batches.results, vbatch.batches.retry; from vbatch import batches; import vbatch.batches.submit;"
        "names = ('results', 'retry', 'submit', 'find', 'status', 'make', 'estimate', 'records');"
        "print([name for name in names if type(getattr(batches, name)).__name__ != 'function']);"
        "print([name for name in batches._HOME_OF if not hasattr(batches, name)], hasattr(batches, 'no_such'))"
    )
    assert python("-c", code).stdout == "[]\n[] False\n"


def test_the_collector_and_the_plugins_are_back() -> None:
    """Mutants: ``end`` that enables nothing; that leaves the variable, which engines would inherit."""
    code = (
        "import gc, os; from vbatch.cli import quick; quick.begin(); print(gc.isenabled(), os.environ['{0}']);"
        "quick.end(); print(gc.isenabled(), os.environ.get('{0}'))"
    ).format("PYDANTIC_DISABLE_PLUGINS")
    assert python("-c", code).stdout == "False __all__\nTrue None\n"
    assert python("-c", code, PYDANTIC_DISABLE_PLUGINS="mine").stdout == "False mine\nTrue mine\n"


def test_a_worker_collects(stored: None) -> None:
    """Mutant: ``settings`` without ``quick.end``."""
    code = (
        "import gc, sys, atexit; sys.argv = ['vbatch', 'run-worker', '--engine', 'echo', '--drain'];"
        "atexit.register(lambda: print(gc.isenabled()));"
        "from vbatch.cli import run; run()"
    )
    done = python("-c", code)
    assert done.stdout.endswith("True\n"), done


@pytest.mark.parametrize(
    ("line", "offered"),
    [("vbatch st", ["status"]), ("vbatch status --j", ["--json"]), ("vbatch label pu", ["push", "pull"])],
)
def test_tab_prepares_the_command_that_is_named(line: str, offered: list[str]) -> None:
    """Mutant: the program for TAB has one command, whatever is named."""
    code = "import sys; sys.argv = ['vbatch']; from vbatch.cli import run; run()"
    variables = {"COMP_WORDS": line, "COMP_CWORD": str(line.count(" ")), "_VBATCH_COMPLETE": "complete_bash"}
    assert python("-c", code, **variables).stdout.split() == offered
