"""Commands run in this process: no second Python to start, the same words and exit codes."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from vbatch.cli import main


@dataclass(frozen=True)
class Done:
    """How a command ended and what it said."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """The one JSON document on stdout."""
        return json.loads(self.out)


class Cli:
    """Runs vbatch in a home of its own whose store is SQLite; ``folder`` is its current folder."""

    def __init__(
        self, folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
    ) -> None:
        self.folder = folder
        self._monkeypatch = monkeypatch
        self._capfd = capfd

    def __call__(self, *arguments: str | Path, stdin: bytes | None = None) -> Done:
        self._capfd.readouterr()
        with self._monkeypatch.context() as patch:
            if stdin is not None:
                patch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
            code = main([str(argument) for argument in arguments])
        captured = self._capfd.readouterr()
        assert "Traceback" not in captured.err
        return Done(code, captured.out, captured.err)

    def file(self, name: str, lines: Sequence[dict[str, object]] | bytes) -> Path:
        """Write an input file."""
        path = self.folder / name
        if isinstance(lines, bytes):
            path.write_bytes(lines)
        else:
            path.write_text("".join(json.dumps(line) + "\n" for line in lines))
        return path

    def submit(self, name: str, lines: Sequence[dict[str, object]], *options: str) -> str:
        """Write an input file and submit it; return the batch id."""
        done = self("submit", self.file(name, lines), *options, "-q")
        assert done.code == 0, done.err
        return done.out.strip()

    def drain(self) -> Done:
        """Run a worker on the echo engine until the queue is empty."""
        done = self("run-worker", "--engine", "echo", "--drain")
        assert done.code == 0, done.err
        return done


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Cli:
    """vbatch in a fresh home."""
    for kind in ("CONFIG", "DATA", "STATE", "CACHE"):
        monkeypatch.setenv(f"XDG_{kind}_HOME", str(tmp_path / "home" / kind.lower()))
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return Cli(folder, monkeypatch, capfd)
