"""Help is quick and complete, and importing the command line drags nothing heavy in."""

from __future__ import annotations

import re
import resource
import subprocess
import sys

import pytest

from vbatch import __version__

HEAVY = {
    "alembic",
    "msgspec",
    "openai",
    "psycopg",
    "pydantic",
    "pydantic_settings",
    "pynvml",
    "rich",
    "sqlalchemy",
    "sqlmodel",
    "torch",
    "transformers",
    "vllm",
}
COMMANDS = [
    "submit", "make", "list", "status", "watch", "results", "show", "cancel", "retry", "delete", "serve", "run-worker",
    "pause", "resume", "demo", "doctor", "selftest", "install-service", "uninstall-service", "label",
]  # fmt: skip


def vbatch(*arguments: str, flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, *flags, "-m", "vbatch", *arguments], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    ("arguments", "tolerated"),
    [
        (["--help"], set()),
        (["--version"], set()),
        (["submit", "--help"], {"pydantic"}),  # Typer's own choice, for a command's options
        (["no-such-command"], {"pydantic", "rich"}),  # an error is coloured
    ],
)
def test_nothing_heavy_is_imported(arguments: list[str], tolerated: set[str]) -> None:
    listing = vbatch(*arguments, flags=("-X", "importtime")).stderr
    imported = {
        line.rpartition("|")[2].strip().partition(".")[0] for line in listing.splitlines() if "|" in line
    }
    assert "typer" in imported
    assert imported & HEAVY <= tolerated


def test_help_takes_a_fifth_of_a_second() -> None:
    """Of a processor: the best of five, for a busy machine is not to decide; the limit leaves room for a slow one."""
    times = []
    for _ in range(5):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert vbatch("--help").returncode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        times.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(times) < 0.5, times


def test_help_lists_every_command_uncut() -> None:
    text = vbatch("--help").stdout
    section = text.partition("Commands:\n")[2]
    assert re.findall(r"^  ([a-z-]+)  ", section, flags=re.MULTILINE) == COMMANDS
    assert "..." not in section


def test_no_command_shows_help() -> None:
    assert vbatch().stdout == vbatch("--help").stdout
    assert vbatch().returncode == 0


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = vbatch(command, "-h")
    assert done.returncode == 0
    assert done.stdout.startswith(f"Usage: vbatch {command}")
    assert not done.stderr


def test_version() -> None:
    assert vbatch("--version").stdout == f"vbatch {__version__}\n"
