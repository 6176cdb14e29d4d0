"""What an engine says goes into its log, and nowhere else."""

from __future__ import annotations

import logging
import multiprocessing
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from vbatch.engine import capture
from vbatch.engine.capture import EngineLog


def speak(word: str) -> None:
    """Speak as a process of an engine does: as Python, and as a library of C."""
    print(f"{word} printed", flush=True)
    os.write(2, f"{word} written\n".encode())


def test_python_and_spawned_processes_speak_into_the_log(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    log = EngineLog(tmp_path, "owner/some model")
    with log.capturing():
        print("parent printed")
        child = multiprocessing.get_context("spawn").Process(target=speak, args=("child",))
        child.start()
        os.write(2, b"worker's terminal\n")
        child.join()
    speak("afterwards")

    said = log.tail()
    assert {"parent printed", "child printed", "child written"} <= set(said.splitlines())
    assert "afterwards" not in said
    terminal = capfd.readouterr()
    assert terminal.out.splitlines() == ["afterwards printed"]
    assert "worker's terminal" in terminal.err
    assert "child" not in terminal.err


def test_a_stream_that_was_taken_before_still_leads_to_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    handler = logging.StreamHandler(sys.stderr)
    log = EngineLog(tmp_path, "m")
    with log.capturing():
        handler.emit(logging.makeLogRecord({"msg": "a worker's event"}))

    assert "a worker's event" in capfd.readouterr().err
    assert "a worker's event" not in log.tail()


def test_what_took_the_stream_of_one_engine_speaks_into_the_log_of_the_next(tmp_path: Path) -> None:
    first = EngineLog(tmp_path, "one")
    with first.capturing():
        handler = logging.StreamHandler(sys.stdout)  # as vLLM does when it is imported
    second = EngineLog(tmp_path, "two")

    handler.emit(logging.makeLogRecord({"msg": "about the second"}))

    assert "about the second" in second.tail()
    assert "about the second" not in first.tail()


def test_a_mark_hides_what_was_said_before(tmp_path: Path) -> None:
    log = EngineLog(tmp_path, "m")
    log.write("start\n")
    log.mark()
    log.write("death\n")

    assert log.tail() == "death\n"


_ANOTHER_WORKER = """
import sys
from pathlib import Path
from vbatch.engine.capture import KEPT, EngineLog
for number in range(KEPT + 2):
    EngineLog(Path(sys.argv[1]), f"zzz-{number}")
"""


def test_the_log_of_a_running_engine_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the oldest go, whoever writes them; a worker whose engine dies then does not find out why."""
    monkeypatch.setattr(time, "strftime", lambda *_args: "20260101T000000")
    log = EngineLog(tmp_path, "m")
    log.write("last words")
    subprocess.run([sys.executable, "-c", _ANOTHER_WORKER, tmp_path], check=True)
    assert log.path.exists()
    log.path.unlink()
    assert log.tail() == "", "somebody tidied up"


def test_logs_are_private_and_old_ones_go(tmp_path: Path) -> None:
    folder = tmp_path / "logs"
    for number in range(capture.KEPT + 5):
        EngineLog(folder, f"m{number}").path.rename(folder / f"engine-2026010{number:04}.log")
    last = EngineLog(folder, "../m")

    assert len(list(folder.iterdir())) == capture.KEPT + 1
    assert last.path.parent == folder
    assert last.path.stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
