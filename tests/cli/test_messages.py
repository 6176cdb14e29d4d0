"""The messages of errors: lower case and without a full stop, wherever they are made."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import vbatch
import vbatch.batches
import vbatch.service.install
import vbatch.service.uninstall
from vbatch.errors import VbatchError

PACKAGE = Path(vbatch.__file__).parent


def error_names(error: type[VbatchError] = VbatchError) -> set[str]:
    return {error.__name__}.union(*(error_names(child) for child in error.__subclasses__()))


def messages(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Yield the text of each message and hint; a value in it stands as ``{}``."""
    names = error_names()
    for call in ast.walk(tree):
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id in names:
            texts = [*call.args[:1], *(word.value for word in call.keywords if word.arg == "hint")]
            for text in texts:
                if isinstance(text, ast.Constant) and isinstance(text.value, str):
                    yield text.lineno, text.value
                elif isinstance(text, ast.JoinedStr):
                    parts = (part.value if isinstance(part, ast.Constant) else "{}" for part in text.values)
                    yield text.lineno, "".join(map(str, parts))


def test_messages_and_hints_are_lower_case_without_a_full_stop() -> None:
    """Mutant: ``"There is no batch {ref!r}."``; nothing repairs a message before it is printed."""
    found = 0
    wrong = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for line, text in messages(ast.parse(file.read_text())):
            found += 1
            if text.endswith(".") or (text[:2].istitle() and text[1:2].islower()):
                wrong.append(f"{file.relative_to(PACKAGE)}:{line}: {text}")
    assert not wrong
    assert found > 100
