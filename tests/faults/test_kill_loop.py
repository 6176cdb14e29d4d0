"""Workers are killed and frozen at random moments, hundreds of times: nothing is lost, nothing doubled.

A referee in the database watches what the code under test cannot be trusted to report about itself: a trigger
refuses any result whose epoch is not the chunk's epoch of that very moment.
"""

from __future__ import annotations

import os
import random
import signal
import threading
import time
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

import pytest

from tests.rigs.commands import chats
from tests.rigs.filling import rows
from tests.rigs.freezing import freeze
from tests.rigs.queued import queued
from tests.rigs.referee import Referee
from tests.rigs.waiting import until
from tests.rigs.workers import drain, failures, kill, start_worker
from vbatch.store import Store

LEASE = timedelta(seconds=1)
LONGEST_FREEZE = 30  # seconds, of which a machine at rest needs two


def torment(store: Store, url: str, folder: Path, *, kills: int, freezes: int, seed: int) -> tuple[int, int]:
    """Keep two workers alive on a batch while killing and freezing them; return how many, of each."""
    dice = random.Random(seed)
    options: dict[str, Any] = {
        "lease": LEASE,
        "echo_latency_ms": 250,
        "max_inflight": 64,
    }
    workers = [start_worker(url, folder, **options) for _ in range(2)]
    freeze_at = set(dice.sample(range(kills), freezes))
    frozen = 0
    for killed in range(kills):
        time.sleep(dice.uniform(0.02, 0.4))
        if killed in freeze_at:
            frozen += _freeze_past_its_lease(store, workers[dice.randrange(2)], folder)
        victim = workers.pop(dice.randrange(2))
        kill(victim)
        workers.append(start_worker(url, folder, **options))
    for worker in workers:
        kill(worker)
    return kills, frozen


def _freeze_past_its_lease(store: Store, victim: ForkServerProcess, folder: Path) -> bool:
    """Freeze a worker until the other one works on a chunk of its; say whether it came to that.

    So it is thawed in the middle of another lease of its chunk (FACTS: else no mutant is caught). Not on all of them:
    the other one may be through with one before it takes the next, and goes on until nothing is left.
    """
    assert victim.pid is not None
    try:
        until(lambda: _held(store, victim.pid) or not rows(store, _LEFT))
    except TimeoutError:
        log = (folder / f"worker-{victim.pid}.log").read_text()
        alive, chunks = (
            victim.is_alive(),
            rows(store, "SELECT state, worker, count(*) FROM chunk GROUP BY 1, 2"),
        )
        raise AssertionError(
            f"a worker took no chunk: alive={alive} chunks={chunks}\n{log[-4000:]}"
        ) from None
    freeze(victim.pid, store)
    thaw = threading.Timer(LONGEST_FREEZE, os.kill, (victim.pid, signal.SIGCONT))
    thaw.start()
    try:
        held = _held(store, victim.pid)
        until(lambda: not held or held & _held_by_others(store, victim.pid), silence=LONGEST_FREEZE)
    except TimeoutError:
        return False
    finally:
        thaw.cancel()
        os.kill(victim.pid, signal.SIGCONT)
    time.sleep(0.3)  # it brings its answers
    return bool(held)


def _held(store: Store, pid: int | None) -> set[tuple[int, int]]:
    return {(batch, n) for batch, n, holder in rows(store, _HELD) if holder == pid}


def _held_by_others(store: Store, pid: int | None) -> set[tuple[int, int]]:
    return {(batch, n) for batch, n, holder in rows(store, _HELD) if holder != pid}


_HELD = (
    "SELECT chunk.batch, chunk.number, worker.pid FROM chunk JOIN worker ON worker.id = chunk.worker"
    " WHERE chunk.state = 'running'"
)
_LEFT = "SELECT 1 FROM chunk WHERE state <> 'done' LIMIT 1"


def check(store: Store, folder: Path, *, kills: int, freezes: int, requests: int) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    expected = chats(requests)
    batch = queued(store, folder, expected)
    with Referee(batch.url) as referee:
        killed, frozen = torment(store, batch.url, folder, kills=kills, freezes=freezes, seed=seed)
        print(f"finished under torment: {batch.batch.counts.completed} of {requests}")
        drain(batch.url, folder, lease=LEASE)
        assert referee.integrity() == "ok"
    assert not failures(folder)
    lines = batch.lines()
    print(f"kills={killed} freezes={frozen} lost={len(lines.lost(expected))} doubled={len(lines.doubled)}")
    assert frozen >= freezes // 2
    assert not lines.lost(expected)
    assert not lines.doubled
    assert not lines.errors
    assert all(answer == custom_id for custom_id, answer in lines.answers.items())


@pytest.mark.timeout(1200)
def test_killed_and_frozen_workers_lose_and_double_nothing(store: Store, tmp_path: Path) -> None:
    """Mutant: queue.flush without any fence; the referee's trigger then refuses what a thawed worker brings.

    (A fence of the worker's name alone, without the epoch, is what tests/store/test_lease.py fails without.)
    """
    check(store, tmp_path, kills=100, freezes=6, requests=10_000)


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_two_thousand_kills(store: Store, tmp_path: Path) -> None:
    """Mutant: as above."""
    check(store, tmp_path, kills=1000, freezes=60, requests=100_000)


def test_work_folder_is_clean_afterwards(store: Store, tmp_path: Path) -> None:
    """Mutant: jsonl's atomic writer leaves its temporary file; batches.finalize does not remove a dead one's."""
    batch = queued(store, tmp_path, chats(3000))
    for _ in range(15):
        worker = start_worker(batch.url, tmp_path, lease=LEASE)
        time.sleep(random.uniform(0.05, 0.6))
        kill(worker)
    drain(batch.url, tmp_path, lease=LEASE)
    assert not batch.lines().lost(chats(3000))
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".vbatch-tmp")]
