"""A worker shows the GPU that it works on: in its metrics, and in its live view."""

from __future__ import annotations

import json
import socket
import sys
import urllib.request
from contextlib import suppress

import pexpect
import pytest

from tests.rigs import engines
from tests.rigs.commands import Home, chats
from tests.rigs.nvml import GIB, StandInDriver
from tests.rigs.waiting import SILENCE, until

pytestmark = pytest.mark.usefixtures("gpu_build")


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_metrics_and_status_name_it(home: Home, driver: StandInDriver) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    driver.has(leak=3 * GIB)

    def served() -> str:
        with (
            suppress(OSError),
            urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=SILENCE) as answer,
        ):
            return str(answer.read().decode())
        return ""

    with home.worker(VBATCH_METRICS_PORT=str(port)):
        until(lambda: 'vbatch_gpu_memory_bytes{gpu="0",kind="used"} ' in served(), pause=0.5)
        batch = home.submit(chats(1, model="qwen-8b"))
        (worker,) = json.loads(home.run("status", batch, "--json").stdout)["workers"]
        (uuid,) = worker["gpus"]
        assert f", {uuid[:12]}" in home.run("status", batch).stdout


@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_live_view_has_its_line(home: Home, driver: StandInDriver) -> None:
    with engines.child() as holder:
        driver.has((holder.pid, 3 * GIB))
        terminal = pexpect.spawn(
            sys.executable,
            ["-m", "vbatch", "run-worker"],
            env=home.env,
            timeout=SILENCE,
            dimensions=(30, 100),
        )
        terminal.expect(rb"GPU 0 \(NVIDIA GeForce RTX 4080\): 3.0 of 15.6 GiB, 97 % busy, 45")
        terminal.sendintr()
        terminal.expect(pexpect.EOF)
