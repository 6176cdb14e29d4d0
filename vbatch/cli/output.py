"""The one place that prints: data on stdout, everything else on stderr, for people, programs or scripts."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from functools import cached_property
from typing import TYPE_CHECKING, TextIO

from vbatch.logs import is_journal
from vbatch.text import harmless

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer
    from rich.console import Console, RenderableType

WIDE = 4000  # columns of what is not a terminal: a program that reads it wants no line folded


class Mode(Enum):
    """For whom a command prints."""

    HUMAN = auto()
    JSON = auto()
    QUIET = auto()  # the ids alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a command shows: ``ids`` for --quiet, one per line, a document for --json, a screen for a person.

    Document and screen are made only when they are shown. A screen of None shows nothing.
    """

    ids: Sequence[str] = ()
    document: Callable[[], object]
    screen: Callable[[], RenderableType | None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """An error as it is shown: ``lines`` follow the message, ``extra`` goes into the JSON document."""

    code: str
    message: str
    hint: str | None
    exit_code: int
    lines: Sequence[str] = ()
    extra: dict[str, object] = field(default_factory=dict)


class Output:
    """Where one command prints."""

    def __init__(self, mode: Mode = Mode.HUMAN) -> None:
        self.mode = mode
        self._transient = False
        self._warned: set[str] = set()

    @classmethod
    def of(cls, *, json: bool = False, quiet: bool = False) -> Output:
        """Make the output that the command's flags ask for."""
        if json and quiet:
            from vbatch.errors import UsageError

            raise UsageError("--json and --quiet exclude each other")
        return cls(Mode.JSON if json else Mode.QUIET if quiet else Mode.HUMAN)

    @cached_property
    def stdout(self) -> Console:
        """The console for data."""
        return console(sys.stdout)

    @cached_property
    def stderr(self) -> Console:
        """The console for everything else."""
        return console(sys.stderr)

    def show(self, result: Result) -> None:
        """Print a command's result."""
        self.clear()
        match self.mode:
            case Mode.JSON:
                self.document(result.document())
            case Mode.QUIET:
                sys.stdout.write("".join(f"{line}\n" for line in result.ids))
            case Mode.HUMAN:
                if (screen := result.screen()) is not None:
                    self.print(screen)
        sys.stdout.flush()

    def print(self, screen: RenderableType) -> None:
        """Print a screen; into a pipe or file without the blanks that fill a terminal's columns."""
        if self.stdout.is_terminal:
            self.stdout.print(screen)
            return
        with self.stdout.capture() as captured:
            self.stdout.print(screen)
        sys.stdout.write("".join(f"{line.rstrip()}\n" for line in captured.get().splitlines()))

    def document(self, document: object) -> None:
        """Print one JSON document: indented on a terminal, one line otherwise."""
        indent = 2 if sys.stdout.isatty() else None
        readable = sys.stdout.encoding.lower().replace("-", "") == "utf8"
        text = json.dumps(document, ensure_ascii=not readable, indent=indent)
        sys.stdout.write(
            harmless(text, keep="\n", escape=lambda character: json.dumps(character)[1:-1]) + "\n"
        )
        sys.stdout.flush()

    def note(self, text: str) -> None:
        """Print a line for a person on stderr; not with --quiet."""
        if self.mode is not Mode.QUIET:
            self.clear()
            self.stderr.print(harmless(text, keep="\n"), soft_wrap=True)

    def warn(self, text: str) -> None:
        """Print a warning, each once: something is probably not meant so."""
        if text not in self._warned:
            self._warned.add(text)
            self._labelled("warning", "yellow", text, priority=4)

    def failure(self, failure: Failure) -> None:
        """Print why the command failed, and what to do; for a program one document on stdout too."""
        self._labelled("error", "bold red", failure.message, priority=3)
        for line in failure.lines:
            self.stderr.print(harmless(line), soft_wrap=True)
        if failure.hint is not None:
            self._labelled("hint", "cyan", failure.hint, priority=5)
        if self.mode is Mode.JSON:
            error = {"code": failure.code, "message": failure.message, "hint": failure.hint, **failure.extra}
            self.document({"error": error})

    def transient(self, text: str) -> None:
        """Show what is happening in one line that the next one replaces; a plain line without a terminal."""
        line = harmless(text)
        if not self.stderr.is_terminal:
            sys.stderr.write(line + "\n")
        else:
            width = self.stderr.width - 1
            sys.stderr.write("\r\x1b[K" + (line if len(line) <= width else line[: width - 1] + "…"))
            self._transient = True
        sys.stderr.flush()

    def clear(self) -> None:
        """Remove a transient line."""
        if self._transient:
            sys.stderr.write("\r\x1b[K")
            sys.stderr.flush()
            self._transient = False

    def _labelled(self, label: str, style: str, text: str, *, priority: int) -> None:
        """Print a labelled line, unfolded so that it can be pasted; the journal gets its priority."""
        from rich.text import Text

        self.clear()
        if is_journal(sys.stderr):
            sys.stderr.write(f"<{priority}>{label}: {harmless(text)}\n")
            return
        line = Text.assemble((f"{label}:", style), " ", harmless(text, keep="\n"))
        self.stderr.print(line, soft_wrap=True)


def continue_without_terminal() -> None:
    """Have this process continue when its terminal is closed: what it prints after that is dropped.

    For a command that works on without a person.
    """
    sys.stdout, sys.stderr = _outliving(sys.stdout), _outliving(sys.stderr)


def _outliving(stream: TextIO) -> TextIO:
    if not stream.isatty():
        return stream
    stream.flush()
    return io.TextIOWrapper(
        io.BufferedWriter(_Terminal(stream.fileno(), "wb", closefd=False)),
        encoding=stream.encoding,
        errors=stream.errors,
        line_buffering=True,
    )


class _Terminal(io.FileIO):
    """A terminal that may vanish. Its number then leads to /dev/null, for whatever else writes there."""

    def write(self, data: ReadableBuffer, /) -> int:
        """Write, or drop it where there is no terminal any more."""
        try:
            return super().write(data) or 0  # none at all: it would block
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self.fileno())
            os.close(nowhere)
            return memoryview(data).nbytes


def console(stream: TextIO) -> Console:
    """Make a console that prints what it is given: no markup, no emoji codes, no guessed highlights."""
    from rich.console import Console

    width = None if stream.isatty() else WIDE
    return Console(file=stream, width=width, markup=False, emoji=False, highlight=False, soft_wrap=False)
