"""The sbatch script of cluster.md, run by a real Slurm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.rigs import readme, slurm
from tests.rigs.commands import Home, Lines, chats
from tests.rigs.docs import DOCS
from tests.rigs.slurm import Slurm
from tests.rigs.waiting import until

REQUESTS, LATENCY_MS = 10_000, "4000"  # 80 s for two workers, which have 256 requests in flight each

pytestmark = [
    pytest.mark.skipif(bool(slurm.missing()), reason=f"needs Slurm: {', '.join(slurm.missing())}"),
    pytest.mark.parametrize("database_url", ["postgresql"], indirect=True),
]


@pytest.fixture
def cluster(environment: dict[str, str], tmp_path: Path) -> Iterator[Slurm]:
    """A Slurm whose jobs are at home."""
    with slurm.slurm(tmp_path / "slurm", environment | {"VBATCH_ECHO_LATENCY_MS": LATENCY_MS}) as running:
        yield running


def submitted(home: Home, cluster: Slurm) -> str:
    """Have the script of the page run, as it is but for the store; return the job's number."""
    (script,) = readme.blocks("sh sbatch", DOCS / "cluster.md")
    assert "postgresql://vbatch@db.example.org/vbatch" in script
    script = script.replace("postgresql://vbatch@db.example.org/vbatch", f"'{home.database_url}'")
    (cluster.folder / "vbatch.sh").write_text(script)
    assert "to start at" in cluster.run("sbatch", "--test-only", "vbatch.sh")
    return cluster.run("sbatch", "--parsable", "vbatch.sh").strip()


def logs(cluster: Slurm) -> dict[str, str]:
    return {path.stem: path.read_text(errors="replace") for path in cluster.folder.glob("vbatch-*.log")}


@pytest.mark.long
def test_an_array_of_workers_answers_a_batch(home: Home, cluster: Slurm) -> None:
    """Slurm sends one worker the signal before its walltime: it drains, the next task of the array takes its place.

    Mutant: a script without ``exec``, whose shell gets the signal and ends the worker without a drain.
    """
    requests = chats(REQUESTS)
    batch_id = home.submit(requests)
    job = submitted(home, cluster)
    progress = lambda: (home.finished(batch_id), len(cluster.jobs("pending")))  # noqa: E731
    until(lambda: home.finished(batch_id) > 200 or len(logs(cluster)) > 2, progress=progress)
    assert len(logs(cluster)) == 2, logs(cluster)  # one for each GPU
    stopped, other = cluster.jobs("running")
    # Its time is up in five minutes: the signal is due. Slurm looks every 30 seconds.
    cluster.run("scontrol", "update", f"JobId={stopped}", "TimeLimit=5")
    until(lambda: stopped not in cluster.jobs("running"), progress=progress, pause=0.5)
    assert home.finished(batch_id) < REQUESTS, "it drained in the middle"
    log = logs(cluster)[f"vbatch-{stopped}"]
    assert "worker.draining" in log, log
    assert "worker.stopped" in log, log
    until(lambda: home.batch(batch_id)["status"] == "completed", progress=progress, pause=1)
    until(lambda: not cluster.jobs("running"), progress=progress)
    cluster.run("scancel", job)
    assert {stopped, other} < {name.removeprefix("vbatch-") for name in logs(cluster)}
    lines = Lines.of(home.batch(batch_id))
    assert not lines.lost(requests)
    assert not lines.doubled
    assert not lines.errors
