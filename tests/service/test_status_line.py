"""What `systemctl status` shows of a worker: one line, true at a glance."""

from __future__ import annotations

import pytest

from vbatch.worker.progress import Snapshot
from vbatch.worker.systemd import status

WORKING = Snapshot(
    state="working", batch="batch_12ab", total=3000, completed=1340, failed=10, requests_per_second=160.0
)


@pytest.mark.parametrize(
    ("snapshot", "stopping", "line"),
    [
        (Snapshot(), False, "starting"),
        (
            Snapshot(waiting_for="the store: the server is starting up"),
            False,
            "waiting for the store: the server is starting up",
        ),
        (Snapshot(state="loading a/b"), False, "loading a/b"),
        (WORKING, False, "batch_12ab: 1,350 of 3,000 requests (45 %), 160.0/s, 0:00:10 left"),
        (Snapshot(state="working", batch="b", total=7), False, "b: 0 of 7 requests (0 %)"),
        # The figures are those of the whole queue. Mutant: give them to the batch that was claimed last.
        (
            Snapshot(state="working", batch="b", batches=2, total=4010, completed=8),
            False,
            "2 batches: 8 of 4,010 requests (0 %)",
        ),
        (Snapshot(state="working", running=3), True, "stopping: 3 requests may still finish"),
        (Snapshot(state="idle"), False, "idle: no batch is waiting"),
        (
            Snapshot(state="idle", trouble="the engine died:\nCUDA\x1b[31m error"),
            False,
            r"idle: no batch is waiting (the engine died: CUDA\x1b[31m error)",
        ),
    ],
)
def test_status(snapshot: Snapshot, stopping: bool, line: str) -> None:
    assert status(snapshot, stopping=stopping) == line


def test_a_long_cause_is_cut() -> None:
    assert len(status(Snapshot(trouble="x" * 1000), stopping=False)) == 200
