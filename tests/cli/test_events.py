"""On a terminal every event of the worker is a sentence."""

from __future__ import annotations

import ast
import logging
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import vbatch
from vbatch.cli.events import SENTENCES, SentenceFormatter

PACKAGE = Path(vbatch.__file__).parent
SAMPLES = {"s": "x", "d": 1, "f": 75.0}
SHOWN = {"info", "warning", "error", "exception"}


def events() -> Iterator[str]:
    """Yield the message of every log call that a terminal shows."""
    for file in sorted(PACKAGE.rglob("*.py")):
        for call in ast.walk(ast.parse(file.read_text())):
            match call:
                case ast.Call(
                    func=ast.Attribute(value=ast.Name(id="log"), attr=level),
                    args=[ast.Constant(str(text)), *_],
                ):
                    if level in SHOWN:
                        yield text


def formatted(message: str, *arguments: object, name: str = "vbatch.worker") -> str:
    return SentenceFormatter().format(logging.LogRecord(name, logging.INFO, "", 0, message, arguments, None))


@pytest.mark.parametrize("message", sorted(set(events())))
def test_every_event_has_a_sentence(message: str) -> None:
    """Mutant: a sentence left out, or one that names a value which its event does not have."""
    kinds = re.findall(r"%[.\d]*([sdf])", message)
    samples = [SAMPLES[kind] for kind in kinds]
    if message.startswith("batch.%s"):
        samples[0] = "completed"
    sentence = formatted(message, *samples)
    assert "=" not in sentence
    assert sentence.partition(" ")[0] not in SENTENCES


@pytest.mark.parametrize(
    ("message", "arguments", "sentence"),
    [
        ("engine.idle seconds=%.0f", [61.0], "nothing to do for 1 min 1 s: the engine is unloaded"),
        (
            "batch.%s batch=%s completed=%d failed=%d output=%s",
            ["completed", "batch_1", 5000, 0, "/o"],
            "batch_1 is completed: 5,000 requests answered, 0 failed",
        ),
        (
            "engine.died model=%s cause=%s",
            ["m\x1b[2J", "out of memory\nlate"],
            r"the engine of m\x1b[2J crashed: out of memory\nlate",
        ),
        ("something.new count=%d", [3], "something.new count=3"),
        ("engine.idle", [], "engine.idle"),
    ],
)
def test_sentences(message: str, arguments: list[object], sentence: str) -> None:
    """Control characters are harmless; what has no sentence, or lacks a value of it, stays ``event key=value``."""
    assert formatted(message, *arguments) == sentence


def test_a_defect_keeps_its_traceback_behind_the_sentence() -> None:
    """Mutant: the sentence alone, so that nobody can find the defect."""
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError:
        record = logging.LogRecord(
            "vbatch.worker",
            logging.ERROR,
            "",
            0,
            "worker.heartbeat_failed error=%s",
            ("by zero",),
            sys.exc_info(),
        )
    line = SentenceFormatter().format(record)
    assert line.startswith("the store did not record the heartbeat: by zero traceback=")
    assert "test_events.py" in line
    assert "\n" not in line


def test_a_library_speaks_for_itself() -> None:
    assert formatted("lost %s", "it", name="sqlalchemy.pool").startswith("library.event logger=")
