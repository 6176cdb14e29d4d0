"""README and docs as a program reads them: their blocks of code, and the steps of a console."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from tests.rigs.docs import DOCS, README

# The model of the examples. In tests the echo engine answers for it.
MODEL = "Qwen/Qwen3-8B"

PAGES = (README, *sorted(DOCS.glob("*.md")))
SERVICE = DOCS / "service.md"


@dataclass(frozen=True)
class Step:
    """One command of a console block, and what is printed after it. A comment (no command) is a power cut."""

    command: str | None
    expected: list[str]


def blocks(language: str, page: Path = README) -> list[str]:
    """Return the blocks of a page in this language, such as ``sh`` or ``console doctor``, in order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)


def consoles(kind: str = "") -> list[list[Step]]:
    """Return the console blocks of this kind on all pages, README first."""
    language = f"console {kind}".strip()
    return [parse_steps(block) for page in PAGES for block in blocks(language, page)]


def parse_steps(block: str) -> list[Step]:
    steps: list[Step] = []
    for line in block.replace(MODEL, "echo").splitlines():
        if line.startswith("$ "):
            steps.append(Step(line[2:], []))
        elif line.startswith("# "):
            steps.append(Step(None, []))
        else:
            steps[-1].expected.append(line)
    return steps
