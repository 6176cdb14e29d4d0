"""Several GPUs: one engine over them, or one worker per GPU under one parent. Real processes, a stand-in driver."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.rigs.commands import Home, Lines, chats
from tests.rigs.nvml import StandInDriver
from tests.rigs.waiting import exit_code, until
from vbatch.store import Store, registry
from vbatch.system import descendants, processes
from vbatch.worker import Stop, several


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """One kind of store: nothing here depends on it."""
    return f"sqlite:///{tmp_path / 'store' / 'vbatch.db'}"


ALL = ("--engine", "echo", "--gpu", "all")


@pytest.fixture
def four(driver: StandInDriver) -> StandInDriver:
    """A driver with four GPUs; a screen hangs on the second."""
    driver.says("gpu", "gpu", "display 1", "gpu", "gpu")
    return driver


def workers_of(parent: subprocess.Popen[bytes]) -> list[int]:
    return [pid for pid in descendants.children(parent.pid) if "run-worker" in processes.title(pid)]


def ready(home: Home, *, workers: int) -> None:
    until(lambda: home.worker_log.count("worker.ready") == workers)


@pytest.mark.usefixtures("four")
def test_one_worker_per_gpu_drains(home: Home) -> None:
    """Mutants: the display's GPU too; a worker's exit that ends the others."""
    batch = home.submit(lines := chats(60))
    done = home.run("run-worker", *ALL, "--drain")
    assert "GPU 1 drives a display and is left out" in done.stderr
    stopped = [line.split()[0] for line in done.stderr.splitlines() if "worker.stopped" in line]
    assert sorted(stopped) == ["gpu=0", "gpu=2", "gpu=3"]
    answered = Lines.of(home.batch(batch))
    assert not answered.lost(lines)
    assert not answered.doubled


@pytest.mark.usefixtures("four")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_reaches_each_worker_once(home: Home, number: signal.Signals) -> None:
    """What runs is finished: a second signal would drop it. Mutants: no own process group; forwarded at each look."""
    batch = home.submit(lines := chats(24))
    with home.worker(*ALL, "--max-inflight", "8", VBATCH_ECHO_LATENCY_MS="4000") as parent:
        ready(home, workers=3)
        workers = workers_of(parent)
        assert all(os.getpgid(pid) == pid for pid in workers)
        until(lambda: home.worker_log.count("engine.loaded"))
        parent.send_signal(number)
        assert exit_code(parent) == 0
    assert home.worker_log.count("worker.stopped") == 3
    assert not Lines.of(home.batch(batch)).doubled
    assert lines
    assert not any(processes.identify(pid) for pid in workers)


@pytest.mark.usefixtures("four")
def test_a_second_signal_ends_all_at_once(home: Home) -> None:
    """Mutant: the parent leaves alone."""
    home.submit([chats(1)[0]])
    with home.worker(*ALL, VBATCH_ECHO_LATENCY_MS="600000") as parent:
        ready(home, workers=3)
        workers = workers_of(parent)
        until(lambda: "engine.loaded" in home.worker_log)
        parent.terminate()
        until(lambda: home.worker_log.count("worker.stopped") >= 2)
        parent.terminate()
        assert exit_code(parent) == 128 + signal.SIGTERM
    assert not any(processes.identify(pid) for pid in workers)


@pytest.mark.usefixtures("four")
def test_the_workers_end_with_a_killed_parent(home: Home) -> None:
    """Mutant: no look at the parent."""
    with home.worker(*ALL) as parent:
        ready(home, workers=3)
        workers = [processes.identify(pid) for pid in workers_of(parent)]
        assert len(workers) == 3
        parent.kill()
        until(lambda: all(worker is None or processes.is_gone(worker) for worker in workers))


@pytest.mark.usefixtures("four")
def test_systemd_hears_of_all_of_them(home: Home, tmp_path: Path) -> None:
    """Mutants: READY by each; the watchdog reset by one of them alone."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
        channel.bind(str(tmp_path / "notify"))
        channel.settimeout(0.5)
        heard: list[str] = []

        def hears(words: str) -> bool:
            with suppress(TimeoutError):
                heard.append(channel.recv(4096).decode())
            return any(words in one for one in heard)

        environment = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "4000000"}
        with home.worker(*ALL, **environment) as parent:
            ready(home, workers=3)
            until(lambda: hears("WATCHDOG=1"))
            until(lambda: hears("STATUS=GPU 0: idle: no batch is waiting; GPU 2: idle"))
            hung = workers_of(parent)[0]
            os.kill(hung, signal.SIGSTOP)
            heard.clear()
            listened = (
                time.monotonic() + 8
            )  # two of the watchdog's times: four messages and more of a group that lives
            while time.monotonic() < listened:
                hears("nothing")
            assert sum("WATCHDOG=1" in one for one in heard) <= 1, "one was on its way"
            os.kill(hung, signal.SIGCONT)
            until(lambda: hears("WATCHDOG=1"))
            parent.terminate()
            until(lambda: hears("STOPPING=1"))
            assert exit_code(parent) == 0
    assert sum("READY" in one for one in heard) <= 1


@pytest.mark.parametrize(("code", "result"), [(78, 78), (69, 69), (0, 0)])
def test_the_exit_code(code: int, result: int) -> None:
    """A worker that only a person can help ends all; of others the worst counts. Mutants: the first; the last."""
    waits = "trap 'exit 0' TERM; echo here; " + ("while :; do sleep 0.05; done" if code == 78 else "exit 0")
    said: list[tuple[int, str]] = []
    commands = {0: ("sh", "-c", waits), 1: ("sh", "-c", f"exit {code}")}
    assert several.run(commands, stop=Stop(), said=lambda *line: said.append(line)) == result
    assert said == [(0, "here")] or code == 78


@pytest.mark.usefixtures("gpu_build")
def test_one_engine_over_two_gpus_has_both(home: Home, store: Store, four: StandInDriver) -> None:
    """Its locks and its row in the store. Mutants: the first lock alone; the first UUID alone."""
    with home.worker("--gpu", "0,2") as first:
        ready(home, workers=1)
        for number in (0, 2):
            assert (home.state_dir / f"gpu-{number}.lock").read_text() == str(first.pid)
        (row,) = registry.live(store)
        assert [uuid[-1] for uuid in row.gpus] == ["0", "2"]
        done = home.run("run-worker", "--drain", "--gpu", "1,2", check=False)
        assert done.returncode == 69
        assert f"GPU 2 already has a worker (process {first.pid})" in done.stderr
        home.run("run-worker", "--drain", "--gpu", "1,3")


@pytest.mark.usefixtures("gpu_build")
@pytest.mark.parametrize(
    ("facts", "workers"), [(["gpu", "gpu"], ["gpu=0", "gpu=1"]), (["gpu", "display 1", "gpu"], [])]
)
def test_all_is_the_default_without_a_display(
    home: Home, driver: StandInDriver, facts: list[str], workers: list[str]
) -> None:
    """With one, a worker alone has the other. Mutants: the first GPU; all of them."""
    driver.says(*facts)
    done = home.run("run-worker", "--drain")
    stopped = [line for line in done.stderr.splitlines() if "worker.stopped" in line]
    assert sorted(line.split()[0] for line in stopped if line.startswith("gpu=")) == workers
    assert len(stopped) == (len(workers) or 1)
    locked = {number for number in (0, 1) if (home.state_dir / f"gpu-{number}.lock").exists()}
    assert locked == ({0, 1} if workers else {1})


@pytest.mark.usefixtures("gpu_build")
def test_memory_is_needed_on_each_gpu(home: Home, four: StandInDriver) -> None:
    """Mutant: the first GPU alone is checked."""
    four.says("gpu", "gpu", f"leak {14 << 30}")
    home.submit(chats(1, model="smol"))
    done = home.run("run-worker", "--drain", "--gpu", "0,1", check=False)
    assert done.returncode == 69
    assert "GPU 1 (NVIDIA GeForce RTX 4080) has 1.57 of 15.57 GiB free" in done.stderr


@pytest.mark.usefixtures("gpu_build", "four")
def test_a_model_that_needs_more_gpus_waits(home: Home) -> None:
    """With the command of a worker that has them; the worker does not end. Mutant: vLLM's own failure, 69."""
    (home.path / "model").mkdir()
    (home.path / "config" / "vbatch").mkdir(parents=True)
    configured = f'[models."big"]\npath = "{home.path / "model"}"\ngpus = 2\n'
    (home.path / "config" / "vbatch" / "config.toml").write_text(configured)
    home.submit(chats(1, model="big"))
    done = home.run("run-worker", "--drain", "--gpu", "3", check=False)
    assert done.returncode == 69, done.stderr
    assert "the model needs 2 GPUs, and this worker has GPU 3" in done.stderr
    assert "vbatch run-worker --gpu 0,1" in done.stderr
