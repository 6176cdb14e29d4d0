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
    """One vbatch command in a terminal of 100 columns."""

    def __init__(
        self, cli: Cli, *arguments: str, ignored: signal.Signals | None = None, **environment: str
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
            dimensions=(30, 100),
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
    assert "vbatch retry" in text


def test_ctrl_c_leaves_a_watch(busy: Cli) -> None:
    watching = Terminal(busy, "watch", "batch_")
    watching.expect("night run")
    watching.child.sendintr()
    code, text = watching.end()
    assert code == 130
    assert "error:" in CSI.sub("", text)
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


def test_a_closed_pipe_is_quiet(cli: Cli, tmp_path: Path) -> None:
    cli.submit("a.jsonl", chats(3000))
    cli.drain()
    script = f"{sys.executable} -m vbatch results batch_ | head -1 | wc -l; echo ${{PIPESTATUS[0]}}"
    output, _ = pexpect.run(f"bash -c '{script}'", withexitstatus=True, encoding="utf-8", cwd=str(cli.folder))
    assert output.split() == ["1", "0"]
