"""What the shell closes is no reason to fail, nor to write into a file that got its number."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.rigs.commands import VBATCH, Home, chats
from tests.rigs.filling import count
from tests.rigs.waiting import SILENCE, output, until
from vbatch.store import Store
from vbatch.system import processes


@pytest.fixture
def here(home: Home) -> Home:
    """A home with one batch in it."""
    home.submit(chats(3), name="first")
    return home


def shell(home: Home, command: str) -> subprocess.CompletedProcess[str]:
    """Run ``vbatch …`` in a shell, with what it does to the streams."""
    return subprocess.run(
        ["bash", "-c", f"{sys.executable} -m {command}"],
        env=home.env, cwd=home.path, capture_output=True, text=True, check=False, timeout=SILENCE,
    )  # fmt: skip


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    ("command", "code"),
    [
        ("vbatch list >&-", 0),
        ("vbatch list 2>&-", 0),
        ("vbatch list <&- >&- 2>&-", 0),
        ("vbatch status none >&- 2>&-", 4),
        ("vbatch submit second.jsonl >&-", 0),
        ("vbatch results batch_ --errors >&-", 0),
        ("vbatch run-worker --engine echo --drain >&- 2>&-", 0),
    ],
)
def test_closed_streams_are_nowhere(here: Home, command: str, code: int) -> None:
    """Mutant: ``run`` leaves them closed: a traceback, or words in the middle of the database."""
    here.write("second", chats(2))
    done = shell(here, command)
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert bool(done.stdout) is (">&-" not in command.replace("2>&-", ""))
    with sqlite3.connect(here.database_url.removeprefix("sqlite:///")) as store:
        assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
@pytest.mark.parametrize(
    "command", ["list", "list --json", "status last --json", "nonsense --json", "doctor store --json"]
)
def test_a_full_disk_under_the_output_is_reported(here: Home, command: str) -> None:
    """Mutant: printing the error's document where the result did not fit either."""
    done = shell(here, f"vbatch {command.replace('last', 'batch_')} > /dev/full")
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert shell(here, f"vbatch {command} > /dev/full 2>&1").returncode in (1, 2, 4)


_UNFLUSHED = """
import sys
from vbatch import cli
cli.main = lambda _argv: sys.stdout.write("a unit file") * 0
cli.run()
"""


def test_what_does_not_fit_at_the_very_end_is_a_failure() -> None:
    """A command may leave its last words in the buffer. Mutant: expecting closed pipes alone."""
    with open("/dev/full", "wb") as full:  # noqa: PTH123
        done = subprocess.run(
            [sys.executable, "-c", _UNFLUSHED],
            env=os.environ | {"PYTHONUNBUFFERED": ""},
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, done.stderr) == (1, b"")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_who_cannot_read_the_id_is_told_it_all_the_same(here: Home) -> None:
    """Mutant: the disk's fault alone; a script would submit the file again, and pay for it twice."""
    here.write("second", chats(2))
    done = shell(here, "vbatch submit second.jsonl -q > /dev/full")
    assert done.returncode == 1
    listed = json.loads(here.run("list", "--json").stdout)["data"]
    (batch,) = [one for one in listed if one["input_path"].endswith("second.jsonl")]
    assert f"{batch['id']} is accepted, but that cannot be written: No space left" in done.stderr


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_document_is_json_whatever_the_locale(here: Home) -> None:
    """Mutant: escapes of Python's own, in a stream that is not UTF-8."""
    here.write("second", chats(2))
    assert shell(here, "vbatch submit second.jsonl --name 'Füße 🎉'").returncode == 0
    here.extra["PYTHONIOENCODING"] = "ascii"
    names = [batch["name"] for batch in json.loads(shell(here, "vbatch list --json").stdout)["data"]]
    assert "Füße 🎉" in names


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_who_cannot_answer_is_asked_nothing(here: Home) -> None:
    """Mutant: asking a stream that the shell closed whether it is a terminal."""
    half = here.path / ".batch_1.12345678.vbatch-tmp"
    half.write_bytes(b"half")
    done = shell(here, "vbatch doctor queue --fix <&-")
    assert "Traceback" not in done.stderr
    assert "unexpected" not in done.stderr
    assert "nothing was changed" in done.stderr
    assert half.exists()


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_closed_input_is_reported(here: Home) -> None:
    done = shell(here, "vbatch submit - -o answers.jsonl <&-")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: standard input is closed\n")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_reader_that_closes_early_changes_no_exit_code(home: Home) -> None:
    """Of `vbatch submit bad.jsonl 2>&1 | head -1`. Mutant: Rich's own exit with 1 where a pipe is closed."""
    bad = home.path / "bad.jsonl"
    bad.write_text("".join(f"nonsense {number}\n" for number in range(2000)))
    command = f"{shlex.join([*VBATCH, 'submit', str(bad)])} 2>&1 | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], env=home.env, capture_output=True, text=True, check=False)
    assert done.returncode == 3
    assert done.stdout.startswith("error: ")
    assert done.stderr == ""


def test_a_command_that_reads_reports_an_unreachable_store_soon(tmp_path: Path) -> None:
    """In three lines. Mutants: the patience of a command that must write; a line for each try."""
    home = Home(tmp_path, "postgresql://ann@127.0.0.1:1/queue")
    before = time.monotonic()
    done = home.run("list", check=False)
    assert done.returncode == 75
    assert time.monotonic() - before < 45, "not the minute of a command that writes"
    waiting, error, hint = done.stderr.splitlines()
    assert waiting.startswith("waiting for the store: no server listens there")
    assert error.startswith("error: ")
    assert hint == "hint: vbatch doctor store"


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_who_is_interrupted_while_waiting_is_told_the_id(home: Home) -> None:
    """Mutant: {"error": …} without it; the batch exists, and nobody knows its name."""
    home.write("a", chats(3))
    waiting = subprocess.Popen(
        [*VBATCH, "submit", "a.jsonl", "--wait", "--json"], env=home.env, cwd=home.path, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # a background shell ignores it
    )  # fmt: skip
    until(lambda: "batch_" in home.run("list", "-q").stdout)
    batch_id = home.run("list", "-q").stdout.strip()
    os.kill(waiting.pid, signal.SIGINT)
    out, err = output(waiting)
    assert waiting.returncode == 130
    assert json.loads(out)["error"] == {
        "code": "interrupted",
        "message": f"interrupted; {batch_id} is accepted and continues",
        "hint": f"vbatch watch {batch_id}",
    }
    assert f"hint: vbatch watch {batch_id}" in err


def test_a_submit_that_a_terminal_stops_continues(home: Home) -> None:
    """Ctrl-Z, and SIGPIPE, within a large file; other commands answer meanwhile, and nothing of it is seen.

    Mutant: ingest that makes the batch visible before all of it is stored.
    """
    other = home.submit(chats(3), name="other")
    source = home.write("large", chats(100_000))
    stored = Store(home.database_url)
    with subprocess.Popen(
        [*VBATCH, "submit", source, "-q"], env=home.env, cwd=home.path, stdout=subprocess.PIPE, text=True,
        process_group=0,  # an orphaned one is not stopped
    ) as submitting:  # fmt: skip
        until(lambda: count(stored, "batch") == 2, pause=0.005)
        submitting.send_signal(signal.SIGPIPE)
        submitting.send_signal(signal.SIGTSTP)
        until(lambda: processes.stat_of(submitting.pid).state == "T")  # type: ignore[union-attr]
        assert home.run("list", "-q").stdout.split() == [other]
        submitting.send_signal(signal.SIGCONT)
        out, _ = output(submitting)
        assert submitting.returncode == 0
    stored.close()
    assert home.batch(out.strip())["request_counts"] == {"total": 100_000, "completed": 0, "failed": 0}


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_reader_that_is_gone_is_no_failure(here: Home) -> None:
    """Of `vbatch list | head`, before the first line and after it. Mutant: a traceback of BrokenPipeError."""
    for command in ("list", "status last", "results last", "list --json", "show last r-1", "doctor store"):
        done = shell(here, f"vbatch {command} | true; exit ${{PIPESTATUS[0]}}")
        assert (done.returncode, done.stderr) == (0, ""), command
