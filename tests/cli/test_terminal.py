"""What a person sees and types: real commands in a pseudo-terminal."""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path
from typing import Any

import pexpect
import pytest

from tests.cli.conftest import Cli
from tests.rigs.commands import chat, chats
from tests.rigs.waiting import SILENCE

CSI = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


class Terminal:
    """One vbatch command in a terminal."""

    def __init__(
        self,
        cli: Cli,
        *arguments: str,
        columns: int = 100,
        ignored: signal.Signals | None = None,
        **environment: str,
    ) -> None:
        def prepare() -> None:
            signal.signal(signal.SIGINT, signal.SIG_DFL)  # a background shell ignores it
            signal.signal(signal.SIGHUP, signal.SIG_DFL)
            if ignored is not None:
                signal.signal(ignored, signal.SIG_IGN)

        self.child = pexpect.spawn(
            sys.executable,
            ["-m", "vbatch", *arguments],
            cwd=str(cli.folder),
            env={**os.environ, "TERM": "xterm-256color", **environment},
            dimensions=(30, columns),
            encoding="utf-8",
            codec_errors="replace",
            preexec_fn=prepare,
            timeout=SILENCE,
        )

    def expect(self, text: str) -> None:
        self.child.expect_exact(text)

    def end(self) -> tuple[int | None, str]:
        """Wait for the end; return the exit code and everything that was shown after the last expectation."""
        self.child.expect(pexpect.EOF)
        self.child.close()
        return self.child.exitstatus, str(self.child.before)


@pytest.fixture
def busy(cli: Cli) -> Cli:
    """A home with a batch that the echo engine takes some seconds for."""
    cli.submit("a.jsonl", chats(2000), "--name", "night run")
    return cli


def test_a_worker_shows_what_it_does_and_drains_at_ctrl_c(busy: Cli) -> None:
    worker = Terminal(busy, "run-worker", "--engine", "echo", VBATCH_ECHO_LATENCY_MS="700")
    worker.expect("working")
    worker.expect("of 2,000 requests")
    worker.expect("requests/s")
    worker.expect("256 running")
    worker.child.sendintr()
    worker.expect("Ctrl-C again stops at once")
    code, rest = worker.end()
    assert code == 0
    assert re.search(r"stopped: [\d,]+ results saved in \d+ s", rest)
    counts = busy("list", "--json").document["data"][0]["request_counts"]
    assert 0 < counts["completed"] < 2000
    assert counts["failed"] == 0


def test_a_second_ctrl_c_stops_at_once(busy: Cli) -> None:
    worker = Terminal(busy, "run-worker", "--engine", "echo", VBATCH_ECHO_LATENCY_MS="3600000")
    worker.expect("256 running")
    worker.child.sendintr()
    worker.expect("Ctrl-C again stops at once")
    worker.child.sendintr()
    code, rest = worker.end()
    assert code == 130
    assert "\x1b[?25l" not in rest.rpartition("\x1b[?25h")[2], "the cursor stays hidden"
    assert rest.endswith("the rest runs with the next worker\r\n")


@pytest.mark.parametrize("hangs_up", [True, False], ids=["SIGHUP", "no SIGHUP"])
def test_a_worker_outlives_its_terminal(cli: Cli, hangs_up: bool) -> None:
    """The window is closed while a request runs. With SIGHUP ignored, as by ``setsid``, the worker works on.

    Mutant: run_worker without continue_without_terminal; the live view then fails (EIO) inside the worker.
    """
    batch_id = cli.submit("a.jsonl", [chat("long", "long", echo="slow:3")])
    worker = Terminal(
        cli, "run-worker", "--engine", "echo", "--drain", ignored=None if hangs_up else signal.SIGHUP
    )
    worker.expect("1 running")
    os.close(worker.child.child_fd)
    _, status = os.waitpid(worker.child.pid, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    batch = cli("status", batch_id, "--json").document
    assert batch["request_counts"]["completed"] == 1
    assert batch["status"] == "completed"


def test_a_drained_worker_says_so(cli: Cli) -> None:
    cli.submit("a.jsonl", chats(3))
    code, text = Terminal(cli, "run-worker", "--engine", "echo", "--drain").end()
    assert code == 0
    assert "is completed: 3 requests answered, 0 failed" in " ".join(text.split())
    assert "the queue is empty: 3 results saved in" in text


def test_a_drained_worker_names_what_it_left(cli: Cli) -> None:
    """With the command for it. Mutant: "the queue is empty"."""
    cli.submit("a.jsonl", chats(3))
    cli.submit("b.jsonl", chats(2, model="qwen-8b"))
    code, text = Terminal(cli, "run-worker", "--engine", "echo", "--drain").end()
    assert code == 0
    assert "nothing is left for this worker: 3 results saved in" in text
    command = "vbatch run-worker --engine vllm"
    assert f"2 requests for qwen-8b wait for a worker with vLLM: {command}" in " ".join(text.split())


def test_watch_follows_to_the_end(busy: Cli) -> None:
    watching = Terminal(busy, "watch", "--exit-status", "batch_")
    watching.expect("night run")
    watching.expect("none is running; start one with")
    worker = Terminal(busy, "run-worker", "--engine", "echo", "--drain", VBATCH_ECHO_LATENCY_MS="500")
    watching.expect("left")
    code, text = watching.end()
    assert code == 0
    assert "100 %" in CSI.sub("", text)
    assert "2,000 answered" in CSI.sub("", text)
    assert worker.end()[0] == 0


def test_submit_wait_exits_with_5_when_a_request_failed(cli: Cli) -> None:
    cli.file("a.jsonl", [*chats(2), chat("bad", "no", echo="error400")])
    waiting = Terminal(cli, "submit", "a.jsonl", "--wait")
    waiting.expect("batch_")
    worker = Terminal(cli, "run-worker", "--engine", "echo", "--drain")
    assert worker.end()[0] == 0
    code, text = waiting.end()
    assert code == 5
    assert "http_400" in text
    assert "--reuse last" in text


def test_ctrl_c_leaves_a_watch(busy: Cli) -> None:
    watching = Terminal(busy, "watch", "batch_")
    watching.expect("night run")
    watching.child.sendintr()
    code, text = watching.end()
    assert code == 0
    assert "the batch continues" in CSI.sub("", text)
    assert "Traceback" not in text


@pytest.mark.parametrize(("environment", "coloured"), [({}, True), ({"NO_COLOR": "1"}, False)])
def test_colours(cli: Cli, environment: dict[str, Any], coloured: bool) -> None:
    cli.submit("a.jsonl", chats(1))
    code, text = Terminal(cli, "status", "batch_", **environment).end()
    assert code == 0
    assert bool(re.search(r"\x1b\[[0-9;]*3[0-9]m", text)) is coloured


def test_a_big_file_has_a_progress_bar(cli: Cli) -> None:
    big = [chat(f"r-{i}", "x" * 100_000) for i in range(300)]
    cli.file("big.jsonl", big)
    code, text = Terminal(cli, "submit", "big.jsonl").end()
    assert code == 0
    assert "reading big.jsonl" in text
    assert "300 requests accepted" in text


@pytest.mark.parametrize("command", ["cancel", "delete"])
def test_the_batch_that_was_asked_about_is_changed(cli: Cli, command: str) -> None:
    """Another process submits one between question and answer. Mutant: ``last`` is looked up again after it."""
    asked = cli.submit("a.jsonl", chats(1))
    if command == "delete":
        cli.drain()
    terminal = Terminal(cli, command, "last")
    terminal.expect(f"{command} {asked} (1 request)? [y/N] ")
    newer = cli.submit("b.jsonl", chats(1))
    terminal.child.sendline("y")
    code, shown = terminal.end()
    assert code == 0, shown
    assert cli("status", newer, "--json").document["status"] == "in_progress"
    after = cli("status", asked, "--json").document
    assert after["error"]["code"] == "no_such_batch" if "error" in after else after["status"] == "cancelled"


def test_a_closed_pipe_is_quiet(cli: Cli, tmp_path: Path) -> None:
    cli.submit("a.jsonl", chats(3000))
    cli.drain()
    script = f"{sys.executable} -m vbatch results batch_ | head -1 | wc -l; echo ${{PIPESTATUS[0]}}"
    output, _ = pexpect.run(f"bash -c '{script}'", withexitstatus=True, encoding="utf-8", cwd=str(cli.folder))
    assert output.split() == ["1", "0"]


def screen(cli: Cli, *arguments: str, columns: int) -> str:
    """What a command leaves on a terminal, as text; no line is wider than it."""
    _, text = Terminal(cli, *arguments, columns=columns, NO_COLOR="1").end()
    lines = [line.rstrip() for line in CSI.sub("", text).replace("\r", "").split("\n")]
    assert max(map(len, lines)) <= columns
    return "\n".join(lines)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_screens_of_a_batch_are_true(cli: Cli, columns: int) -> None:
    """In each of its states. Mutants: a green word for a batch of failures; a file that was not written."""
    whole = cli.submit("whole.jsonl", chats(3), "--name", "whole")
    bad = cli.submit("bad.jsonl", [chat(f"r-{n}", "x", echo="error400") for n in range(3)], "--name", "bad")
    queued = screen(cli, "status", bad, columns=columns)
    assert queued.startswith(f"{bad}  bad  queued\n")
    assert "0 %  0 of 3 requests" in queued
    assert "0 answered · 0 failed · 1 batch before it" in queued
    assert "requests/s" not in queued
    cli.drain()
    completed = screen(cli, "status", whole, columns=columns)
    assert completed.startswith(f"{whole}  whole  completed\n")
    assert "100 %  3 of 3 requests" in completed
    assert "whole.output.jsonl" in "".join(completed.split())
    assert "errors" not in completed, "no error file was written"
    failed = screen(cli, "status", bad, columns=columns)
    assert "0 answered · 3 failed" in failed
    assert "3  http_400  refused, as vbatch_echo asked" in failed
    assert "\noutput" not in failed, "no output file was written"
    listed = screen(cli, "list", columns=columns)
    assert [line.split()[1] for line in listed.splitlines()[1:3]] == ["completed", "completed"]


@pytest.mark.parametrize("columns", [80, 120])
def test_the_screens_of_a_worker_are_true(busy: Cli, columns: int) -> None:
    worker = Terminal(
        busy, "run-worker", "--engine", "echo", columns=columns, NO_COLOR="1", VBATCH_ECHO_LATENCY_MS="3000"
    )
    worker.expect("256 running, none finished yet")
    worker.expect("requests/s")
    worker.expect("until ")
    worker.child.sendintr()
    worker.expect("running requests finish and are saved")
    worker.child.sendintr()
    assert worker.end()[0] in (0, 130)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_screens_of_an_idle_worker_are_true(cli: Cli, columns: int) -> None:
    """Mutant: the rates of the last minute beside the word idle."""
    cli.submit("a.jsonl", chats(3))
    worker = Terminal(cli, "run-worker", "--engine", "echo", columns=columns, NO_COLOR="1")
    worker.expect("3 requests")
    worker.expect("idle")
    worker.expect("idle")
    worker.child.sendintr()
    _, left = worker.end()
    assert "requests/s" not in CSI.sub("", left)


@pytest.mark.parametrize("columns", [80, 120])
def test_the_screens_of_a_blocked_batch_are_true(cli: Cli, columns: int) -> None:
    """In the worker's view, in ``status`` and in the list. Mutants: a view without its reason; a cyan word."""
    batch = cli.submit("a.jsonl", chats(3, model="qwen-8b"))
    worker = Terminal(cli, "run-worker", columns=columns, NO_COLOR="1", HF_HUB_OFFLINE="1")
    worker.expect("! the requests for qwen-8b wait: qwen-8b is not on this machine")
    worker.child.sendintr()
    worker.end()
    status = screen(cli, "status", batch, columns=columns)
    assert status.startswith(f"{batch}  blocked\n")
    words = " ".join(status.split())
    assert "3 requests cannot run: qwen-8b qwen-8b is not on this machine" in words
    assert "0 %  0 of 3 requests" in status
    listed = screen(cli, "list", columns=columns).splitlines()
    assert "blocked" in listed[1]
