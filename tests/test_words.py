"""Plain words wherever a person reads: README, docs, changelog, help, messages and docstrings.

The phrases are the ones that a reader with English as a second language stumbles over. Each has a plain word in its
place: mend → fix, of ours → vbatch's, one a GPU → one per GPU.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs.docs import DOCS, README, ROOT

PHRASES = re.compile(
    "|".join(
        (
            r"\bmend(s|ed|ing)?\b",
            r"\btells? of\b",
            r"\btold\b",
            r"\b(somebody|nobody)\b",
            r"\bgo(es)? on\b",
            r"\banew\b",
            r"\bours\b",
            r"\boutliv(e[sd]?|ing)\b",
            r"\bone( (?!of\b)\w+)? an? (batch|check|engine|GPU|line|process|request|worker)\b",
            r"\bforbids? (to|him|her|it)\b",
            r"\bknows? no\b",
            r"\bstands? (already )?(in|on) line\b",
            r"\bfits? several\b",
            r"\b(is|are|was|were) away\b",
            r"\bwithout a word\b",
            r"\bthat is (?-i:none)\b|\band - is none\b",
            r"\bquestion is wrong\b",
        )
    ),
    re.IGNORECASE,
)


def texts() -> list[Path]:
    """Every file that a person reads, or that holds what a person reads."""
    return [
        README,
        ROOT / "CHANGELOG.md",
        *sorted(DOCS.glob("*.md")),
        *sorted((ROOT / "vbatch").rglob("*.py")),
    ]


def prose(path: Path) -> Iterator[tuple[int, str]]:
    """Yield what a person reads in a file, with its line: of Python the literals and docstrings."""
    text = path.read_text()
    if path.suffix == ".py":
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield node.lineno, " ".join(node.value.split())
    else:
        paragraphs = re.finditer(r"(?:^.*\S.*\n?)+", text, re.MULTILINE)
        for paragraph in paragraphs:
            yield text.count("\n", 0, paragraph.start()) + 1, " ".join(paragraph[0].split())


def found(path: Path) -> list[str]:
    return [f"line {line}: {phrase[0]}" for line, text in prose(path) for phrase in PHRASES.finditer(text)]


@pytest.mark.parametrize("path", texts(), ids=lambda path: str(path.relative_to(ROOT)))
def test_plain_words(path: Path) -> None:
    """Mutant: any phrase of the table in a message, a docstring, the help or the docs."""
    assert not found(path)
