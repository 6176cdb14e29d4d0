"""TAB: the scripts are those that Typer makes, and they work in real shells."""

from __future__ import annotations

import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pexpect
import pytest

from tests.cli.conftest import Cli
from tests.rigs.commands import chats
from tests.rigs.waiting import SILENCE

ROOT = Path(__file__).parent.parent.parent
FOLDER = ROOT / "completions"
SHELLS = {"bash": "vbatch.bash", "zsh": "_vbatch", "fish": "vbatch.fish"}


@pytest.mark.parametrize("shell", SHELLS)
def test_in_sync(shell: str) -> None:
    spec = importlib.util.spec_from_file_location("generate", FOLDER / "generate.py")
    assert spec is not None
    assert spec.loader is not None
    generate = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(generate)
    assert (FOLDER / SHELLS[shell]).read_text() == generate.script(shell), (
        "run: python completions/generate.py"
    )


def test_zsh_finds_its_name_on_line_one() -> None:
    assert (FOLDER / "_vbatch").read_text().startswith("#compdef vbatch\n")


class Terminal:
    """A shell at a terminal, in which a person types."""

    def __init__(self, command: str, arguments: list[str], setup: str, env: dict[str, str]) -> None:
        self.child = pexpect.spawn(
            command,
            arguments,
            env=env,
            encoding="utf-8",
            codec_errors="replace",
            dimensions=(40, 200),
            timeout=SILENCE,
        )
        self.child.sendline(setup + "; PS1='TA''B> '")
        self.child.expect_exact("TAB> ")

    def type(self, text: str) -> None:
        self.child.send(text)

    def expect(self, text: str) -> None:
        self.child.expect_exact(text)


def environment(folder: Path) -> dict[str, str]:
    """A person's environment with this vbatch as the first on the PATH."""
    import os

    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    kept = {name: value for name, value in os.environ.items() if name.startswith("XDG_")}
    return {"PATH": path, "HOME": str(folder), "TERM": "dumb", "LANG": "C.UTF-8", **kept}


@pytest.fixture
def bash(cli: Cli) -> Iterator[Terminal]:
    """A bash that has sourced the script, with files and batches to complete."""
    setup = f"bind 'set enable-bracketed-paste off'; source '{FOLDER / 'vbatch.bash'}'"
    terminal = Terminal("bash", ["--norc", "--noprofile", "-i"], setup, environment(cli.folder))
    yield terminal
    terminal.child.close(force=True)


def test_bash_completes_commands(bash: Terminal) -> None:
    bash.type("echo vbatch; vbatch subm\t")
    bash.expect("submit ")


def test_bash_completes_options_and_their_values(bash: Terminal) -> None:
    bash.type("vbatch run-worker --max-i\t")
    bash.expect("--max-inflight ")
    bash.type("4 --engine ec\t")
    bash.expect("echo ")


def test_bash_completes_files(bash: Terminal, cli: Cli) -> None:
    cli.file("prompts-of-monday.jsonl", chats(1))
    bash.type("vbatch submit prompts\t")
    bash.expect("prompts-of-monday.jsonl ")


def test_bash_completes_batch_ids(bash: Terminal, cli: Cli) -> None:
    batch_id = cli.submit("a.jsonl", chats(1), "--name", "$(touch danger)")
    bash.type("vbatch status bat\t")
    bash.expect(f"{batch_id} ")
    bash.type("--j\t")
    bash.expect("--json ")
    assert not (cli.folder / "danger").exists()


@pytest.mark.skipif(shutil.which("zsh") is None, reason="zsh is not installed")
def test_zsh_completes_at_the_first_tab(cli: Cli) -> None:
    batch_id = cli.submit("a.jsonl", chats(1), "--name", "it's `touch danger`")
    setup = f"fpath=('{FOLDER}' $fpath); autoload -Uz compinit; compinit -u -D"
    terminal = Terminal("zsh", ["-f", "-i"], setup, environment(cli.folder) | {"TERM": "xterm"})
    terminal.type("vbatch status bat\t")
    terminal.expect(batch_id)
    terminal.child.close(force=True)
    assert not (cli.folder / "danger").exists()


@pytest.mark.skipif(shutil.which("fish") is None, reason="fish is not installed")
def test_fish_offers_batch_ids(cli: Cli) -> None:
    batch_id = cli.submit("a.jsonl", chats(1))
    output, status = pexpect.run(
        f"fish --no-config -c \"source '{FOLDER / 'vbatch.fish'}'; complete -C 'vbatch status bat'\"",
        env=environment(cli.folder),
        encoding="utf-8",
        withexitstatus=True,
    )
    assert status == 0
    assert batch_id in output


@pytest.mark.parametrize(
    "url", ["postgresql://nobody@127.0.0.1:1/none", "nonsense", "sqlite:////no/such/place.db"]
)
def test_tab_is_silent_when_the_store_is_not_there(
    cli: Cli, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vbatch.cli.arguments import batch_ids

    monkeypatch.setenv("VBATCH_DATABASE_URL", url)
    assert list(batch_ids("")) == []
    assert cli.folder.exists()


def test_tab_creates_no_store(cli: Cli) -> None:
    from vbatch.cli.arguments import batch_ids

    assert list(batch_ids("")) == []
    assert not (cli.folder.parent / "home" / "data").exists()
