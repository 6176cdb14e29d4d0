"""Measure the CPU of the commands that a person types most, against importing what any of them needs.

    python -m tests.benchmarks.bench_commands [--rounds N] [--requests 3000000]

Each is a process of its own with its byte code cached, as installed; they take turns, and the least of all rounds
counts. ``doctor engine`` is measured with the import of vLLM and without, where vLLM is installed; ``status`` also
beside a batch of so many requests.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import vbatch
from tests.benchmarks.bench_store import finish
from tests.rigs.filling import take_in
from vbatch.store import Store

BASE = "python -c 'import typer, rich, sqlalchemy'"


def main() -> None:
    """Run the benchmark and print a line for each command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--requests", type=int, default=3_000_000)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-commands-") as folder:
        _compare(Path(folder), options.rounds, options.requests)


def _compare(home: Path, rounds: int, requests: int) -> None:
    small, large = home / "small", home / "large"
    for data in (small, large):
        data.mkdir()
        store = Store(f"sqlite:///{data}/vbatch.db")
        store.prepare()
        for _ in range(20):
            take_in(store, 3)
        if data is large:
            finish(store, requests)
        store.close()
    run = ("-c", "from vbatch.cli import run; run()")
    tab = {"COMP_WORDS": "vbatch status ba", "COMP_CWORD": "2", "_VBATCH_COMPLETE": "complete_bash"}
    commands: dict[str, tuple[Sequence[str], Path, Mapping[str, str]]] = {
        BASE: (("-c", "import typer, rich, sqlalchemy"), small, {}),
        "vbatch list": ((*run, "list"), small, {}),
        "vbatch status ID": ((*run, "status", "last"), small, {}),
        "TAB after vbatch status": (run, small, tab),
        f"vbatch status of {requests:,} requests": ((*run, "status", "last"), large, {}),
    }
    if importlib.util.find_spec("vllm") is not None:
        commands["vbatch doctor engine"] = ((*run, "doctor", "engine"), small, {})
        fresh = _cpu((*run, "doctor", "engine", "--fresh"), home, small, {})
    least: dict[str, float] = {}
    for _ in range(rounds + 1):  # the first one writes the byte code
        for name, (arguments, data, variables) in commands.items():
            least[name] = min(least.get(name, 1e9), _cpu(arguments, home, data, variables))
    if importlib.util.find_spec("vllm") is not None:
        least["vbatch doctor engine --fresh, once"] = fresh
    for name, seconds in least.items():
        print(f"{name:<44} {seconds:7.3f} s  {seconds / least[BASE]:6.2f}")


def _cpu(arguments: Sequence[str], home: Path, data: Path, variables: Mapping[str, str]) -> float:
    """Return the CPU seconds, of user and system, of one run and its children."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith("VBATCH_")}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    environment |= {
        "PYTHONPYCACHEPREFIX": str(home / "bytecode"),
        "PYTHONPATH": str(Path(vbatch.__file__).parents[1]),
        "VBATCH_DATA_DIR": str(data),
        "VBATCH_STATE_DIR": str(home / "state"),
        **variables,
    }
    nowhere = [(os.POSIX_SPAWN_OPEN, number, os.devnull, os.O_WRONLY, 0) for number in (1, 2)]
    child = os.posix_spawn(sys.executable, [sys.executable, *arguments], environment, file_actions=nowhere)
    _, status, used = os.wait4(child, 0)
    if (code := os.waitstatus_to_exitcode(status)) != 0:
        raise SystemExit(f"exit {code}: {' '.join(arguments)}")
    return used.ru_utime + used.ru_stime


if __name__ == "__main__":
    main()
