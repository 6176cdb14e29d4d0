"""The Ray script of cluster.md on three nodes of a real Ray, one of which is killed in the middle.

python -m tests.rigs.with_ray        has an environment with Ray, and runs this there
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.rigs import readme
from tests.rigs.commands import Home, Lines, chats
from tests.rigs.docs import DOCS, ROOT
from tests.rigs.waiting import cpu_seconds, until

cluster_utils = pytest.importorskip(
    "ray.cluster_utils", reason="needs Ray: python -m tests.rigs.with_ray", exc_type=ImportError
)

REQUESTS = 20_000
NODES = 3
LATENCY_MS = "2000"  # of an answer, so that the batch takes longer than Ray to see that a node is lost


@pytest.fixture
def cluster(home: Home, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Three nodes with a GPU each, which is there in name alone; their processes are at home."""
    ours = {"PYTHONPATH": str(ROOT), "RAY_USAGE_STATS_ENABLED": "0", "VBATCH_ECHO_LATENCY_MS": LATENCY_MS}
    for name, value in (home.env | ours).items():
        if name != "VBATCH_DATABASE_URL":  # that is for the script to hand on
            monkeypatch.setenv(name, value)
    each = {"num_cpus": 1, "num_gpus": 1}
    started = cluster_utils.Cluster(initialize_head=True, head_node_args=each)
    try:
        for _ in range(NODES - 1):
            started.add_node(**each)
        yield started
    finally:
        started.shutdown()


def raylet(node: Any) -> int:
    (info,) = node.all_processes["raylet"]
    pid: int = info.process.pid
    return pid


@contextmanager
def script(home: Home, cluster: Any) -> Iterator[tuple[subprocess.Popen[bytes], Path]]:
    """Run the script of the page, as it is; yield its process, and the file with what it prints."""
    (text,) = readme.blocks("python ray", DOCS / "cluster.md")
    (home.path / "vbatch_on_ray.py").write_text(text)
    printed = home.path / "printed.txt"
    with printed.open("wb") as out:
        process = subprocess.Popen(
            [sys.executable, "vbatch_on_ray.py", "--engine", "echo"],
            env=os.environ | {"VBATCH_DATABASE_URL": home.database_url, "RAY_ADDRESS": cluster.address},
            cwd=home.path,
            stdout=out,
            stderr=out,
        )
    try:
        yield process, printed
    finally:
        process.kill()
        process.wait()


def workers(home: Home) -> list[psutil.Process]:
    """The workers of this store that run."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            is_ours = process.environ().get("VBATCH_DATABASE_URL") == home.database_url
            if is_ours and process.cmdline()[1:4] == ["-m", "vbatch", "run-worker"]:
                found.append(process)
    return found


@pytest.mark.long
@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_node_is_lost_and_no_request(home: Home, cluster: Any) -> None:
    """Ctrl-C ends all workers. At the next start, SIGKILL of a raylet and of all below it, as a host that is gone: the
    others do its work; the script ends by itself and says so.

    Mutants of the page: a worker without ``--pdeathsig``, which stays; the end of one actor ends the script.
    """
    requests = chats(REQUESTS)
    batch_id = home.submit(requests)
    progress = lambda: (cpu_seconds(os.getpid()), home.finished(batch_id))  # noqa: E731
    with script(home, cluster) as (process, printed):
        until(lambda: process.poll() is not None or home.finished(batch_id) > 1000, progress=progress)
        assert process.poll() is None, printed.read_text()
        assert len(workers(home)) == NODES
        process.send_signal(signal.SIGINT)
        until(lambda: process.poll() is not None, progress=progress)
        until(lambda: not workers(home), progress=progress)
    done = home.finished(batch_id)
    with script(home, cluster) as (process, printed):
        until(lambda: process.poll() is not None or home.finished(batch_id) > done + 2000, progress=progress)
        assert process.poll() is None, printed.read_text()
        (victim,) = (psutil.Process(raylet(node)) for node in cluster.list_all_nodes()[-1:])
        for lost in (victim, *victim.children(recursive=True)):
            with suppress(psutil.NoSuchProcess):
                lost.kill()
        done = home.finished(batch_id)
        assert done < REQUESTS, "it was killed in the middle"
        until(lambda: len(workers(home)) == NODES - 1)
        until(lambda: process.poll() is not None, progress=progress, pause=0.5)
        said = printed.read_text()
    assert process.returncode == 0, said
    assert said.count("ended with 0") == NODES - 1
    assert "a node is lost" in said
    lines = Lines.of(home.batch(batch_id))
    print(f"killed at {done} of {REQUESTS}; {len(lines.answers)} answers, {len(lines.doubled)} twice")
    assert not lines.lost(requests)
    assert not lines.doubled
    assert not lines.errors
