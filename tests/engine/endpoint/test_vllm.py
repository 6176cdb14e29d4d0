"""A real ``vllm serve`` on the CPU answers a batch through the engine ``endpoint``, dies in the middle, and returns."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.rigs.commands import Home, Lines, chat
from tests.rigs.model import ENGINE_ARGS, small_model
from tests.rigs.waiting import cpu_seconds, until

__all__ = ["small_model"]


@contextmanager
def serving(model: Path, port: int, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run ``vllm serve`` in a process group of its own."""
    # Not the command `vllm`: that of the CPU build does not find its own distribution.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(model)]
    options = [*ENGINE_ARGS, "--served-model-name", "smol", "--dtype", "float32"]
    options += ["--host", "127.0.0.1", "--port", str(port)]
    with log.open("ab") as out:
        process = subprocess.Popen([*command, *options], stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """End the server and its engine at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def answers(port: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2) as reply:
        return int(reply.status) == 200
    return False


@pytest.mark.long
@pytest.mark.vllm
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_a_real_server_dies_in_the_middle_and_returns(home: Home, small_model: Path, tmp_path: Path) -> None:
    """0 lost, 0 doubled, no command typed. Mutant: connection errors as attempts: the batch ends with error lines."""
    requests = [chat(f"q-{number}", f"Say the number {number}.", model="smol") for number in range(120)]
    for request in requests:
        request["body"] |= {"max_tokens": 16, "temperature": 0}  # type: ignore[operator]  # a body
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = tmp_path / "serve.log"
    progress = partial(cpu_seconds, os.getpid())
    batch_id = home.submit(requests)
    with home.worker("--url", f"http://127.0.0.1:{port}"):
        with serving(small_model, port, log) as first:
            until(
                lambda: first.poll() is not None or home.finished(batch_id) >= 20,
                progress=progress,
                pause=0.5,
            )
            assert first.poll() is None, log.read_text()[-2000:]
            kill(first)
        done = home.finished(batch_id)
        assert done < len(requests), "it died in the middle"
        with serving(small_model, port, log):
            until(lambda: answers(port), progress=progress, pause=0.5)
            until(lambda: home.batch(batch_id)["status"] == "completed", progress=progress, pause=2)
    lines = Lines.of(home.batch(batch_id))
    print(f"killed at {done} of {len(requests)}; {len(lines.answers)} answers, {len(lines.errors)} errors")
    assert not lines.lost(requests)
    assert not lines.doubled
    assert not lines.errors
    assert all(lines.answers.values())
