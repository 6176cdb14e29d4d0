"""The README as a program reads it: its console blocks, its generated parts.

python -m tests.rigs.readme        write the generated parts anew: settings, findings, reference
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

README = Path(__file__).parent.parent.parent / "README.md"
VBATCH = [sys.executable, "-m", "vbatch"]


@dataclass(frozen=True)
class Step:
    """One command of a console block, and what is printed after it. A comment is a step without a command."""

    command: str | None
    comment: str
    expected: list[str]


def console_blocks() -> list[list[Step]]:
    """Return the console blocks outside the generated parts, in order."""
    text = README.read_text()
    for part in ("settings", "findings", "reference"):
        text = text.replace(between(text, part), "")
    return [
        parse_steps(block) for block in re.findall(r"^```console\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    ]


def parse_steps(block: str) -> list[Step]:
    steps: list[Step] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            steps.append(Step(line[2:], "", []))
        elif line.startswith("# "):
            steps.append(Step(None, line[2:], []))
        else:
            steps[-1].expected.append(line)
    return steps


def shell_commands() -> list[str]:
    """Return the one-line commands of the sh blocks, in order."""
    return re.findall(r"^```sh\n(.*?)\n```$", README.read_text(), re.DOTALL | re.MULTILINE)


def block(language: str) -> str:
    """Return the first block in this language."""
    found = re.search(rf"^```{language}\n(.*?)^```$", README.read_text(), re.DOTALL | re.MULTILINE)
    assert found is not None
    return found[1]


def between(text: str, name: str) -> str:
    """Return a generated part of the README."""
    return text.partition(f"<!-- {name} -->\n")[2].partition(f"<!-- /{name} -->")[0]


def settings() -> str:
    """Return the table of settings, from their declarations."""
    from vbatch.config import PREFIX, TABLES, Settings

    rows = ["| variable | in config.toml | default | what it says |", "| --- | --- | --- | --- |"]
    for name, field in Settings.model_fields.items():
        if name not in TABLES:
            rows.append(
                f"| `{PREFIX}{name.upper()}` | `{name}` | {_default(name, field.default)} | {field.description} |"
            )
    return "\n".join(rows) + "\n"


_FOLDERS = {
    "data_dir": "~/.local/share/vbatch",
    "cache_dir": "~/.cache/vbatch",
    "state_dir": "~/.local/state/vbatch",
}


def _default(name: str, value: object) -> str:
    from datetime import timedelta

    if name in _FOLDERS:
        return f"`{_FOLDERS[name]}`"
    if isinstance(value, timedelta):
        seconds = int(value.total_seconds())
        return f"`{seconds // 60}m`" if seconds % 60 == 0 else f"`{seconds}s`"
    if value is None:
        return "`never`" if name in ("request_timeout", "idle_unload") else ""
    return f"`{value}`"


def findings() -> str:
    """Return the table of doctor's findings."""
    from vbatch.doctor import registry

    rows = ["| finding | what it means | what to do |", "| --- | --- | --- |"]
    for name, meaning in registry.meanings().items():
        means, remedy = (text.replace("|", "\\|") for text in (meaning.means, meaning.remedy))
        rows.append(f"| `{name}` | {means} | {remedy} |")
    return "\n".join(rows) + "\n"


def reference() -> str:
    """Return the help of every command, as a terminal of 80 columns shows it."""
    names = re.findall(r"^  ([a-z-]+)  ", _help().partition("Commands:\n")[2], re.MULTILINE)
    helps = {"vbatch": _help()} | {f"vbatch {name}": _help(name) for name in names}
    return "".join(f"### {name}\n\n```text\n{text}```\n\n" for name, text in helps.items())


def _help(*command: str) -> str:
    done = subprocess.run(
        [*VBATCH, *command, "--help"],
        env=os.environ | {"COLUMNS": "80"},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return done.stdout


def refreshed() -> str:
    """Return the README with its generated parts as they should be."""
    text = README.read_text()
    for name, content in (("settings", settings()), ("findings", findings()), ("reference", reference())):
        text = text.replace(
            f"<!-- {name} -->\n{between(text, name)}<!-- /{name} -->",
            f"<!-- {name} -->\n{content}<!-- /{name} -->",
        )
    return text


if __name__ == "__main__":
    README.write_text(refreshed())
