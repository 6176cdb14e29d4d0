"""A real server of models answers a batch through the engine ``endpoint``, dies in the middle, and returns.

Which server it is, is the caller's matter: one process group that serves ``smol`` at a port.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from tests.rigs.commands import Home, Lines, chat
from tests.rigs.waiting import cpu_seconds, until

MODEL = "smol"
COUNT = 120


@contextmanager
def _serving(command: Sequence[str | Path], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the server in a process group of its own."""
    with log.open("ab") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        _kill(process)


def _kill(process: subprocess.Popen[bytes]) -> None:
    """End the server and all below it at once."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _answers(port: int) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=2) as reply:
        return MODEL.encode() in reply.read()
    return False


def dies_and_returns(home: Home, folder: Path, command: Callable[[int], Sequence[str | Path]]) -> None:
    """Assert: 0 lost, 0 doubled, no command typed. ``command`` starts a server at this port."""
    requests = [chat(f"q-{number}", f"Say the number {number}.", model=MODEL) for number in range(COUNT)]
    for request in requests:
        request["body"] |= {"max_tokens": 16, "temperature": 0}  # type: ignore[operator]  # a body
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    log = folder / "serve.log"
    progress = partial(cpu_seconds, os.getpid())
    batch_id = home.submit(requests)
    with home.worker("--engine", "endpoint", "--url", f"http://127.0.0.1:{port}"):
        with _serving(command(port), log) as first:
            until(
                lambda: first.poll() is not None or home.finished(batch_id) >= 20,
                progress=progress,
                pause=0.5,
            )
            assert first.poll() is None, log.read_text()[-2000:]
            _kill(first)
        done = home.finished(batch_id)
        assert done < len(requests), "it died in the middle"
        with _serving(command(port), log):
            until(lambda: _answers(port), progress=progress, pause=0.5)
            until(lambda: home.batch(batch_id)["status"] == "completed", progress=progress, pause=2)
    lines = Lines.of(home.batch(batch_id))
    print(f"killed at {done} of {len(requests)}; {len(lines.answers)} answers, {len(lines.errors)} errors")
    assert not lines.lost(requests)
    assert not lines.doubled
    assert not lines.errors
    assert all(lines.answers.values())
