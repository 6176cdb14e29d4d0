"""Workers are killed and frozen at random moments, hundreds of times: nothing is lost, nothing doubled.

A referee in the database watches what the code under test cannot be trusted to report about itself: a trigger
refuses any result whose epoch is not the chunk's epoch of that very moment.
"""

from __future__ import annotations

import os
import random
import signal
import time
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import pytest

from tests.rigs.commands import chats
from tests.rigs.queued import queued
from tests.rigs.referee import Referee
from tests.rigs.workers import drain, failures, kill, start_worker
from vbatch.store import Store

LEASE = timedelta(seconds=1)
FREEZE = 2.5  # seconds: longer than the lease, and about as long as a chunk takes (FACTS: else no mutant is caught)


def torment(url: str, folder: Path, *, kills: int, freezes: int, seed: int) -> int:
    """Keep two workers alive on a batch while killing and freezing them; return how many were killed."""
    dice = random.Random(seed)
    options = {"lease": LEASE, "echo_latency": timedelta(milliseconds=250), "max_inflight": 64}
    workers = [start_worker(url, folder, **options) for _ in range(2)]
    thaw_at: dict[int, tuple[float, ForkServerProcess]] = {}
    freeze_at = set(dice.sample(range(kills), freezes))
    killed = 0
    while killed < kills:
        time.sleep(dice.uniform(0.02, 0.5))
        for number, (moment, frozen) in list(thaw_at.items()):
            if time.monotonic() >= moment:
                os.kill(number, signal.SIGCONT)
                del thaw_at[number]
                workers.append(frozen)
        victim = workers.pop(dice.randrange(len(workers)))
        if killed in freeze_at:
            freeze_at.discard(killed)
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGSTOP)
            thaw_at[victim.pid] = (time.monotonic() + FREEZE, victim)
        else:
            kill(victim)
            killed += 1
        if len(workers) < 2:
            workers.append(start_worker(url, folder, **options))
    for _, frozen in thaw_at.values():
        kill(frozen)
    for worker in workers:
        kill(worker)
    return killed


def check(store: Store, folder: Path, *, kills: int, freezes: int, requests: int) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    expected = chats(requests)
    batch = queued(store, folder, expected)
    with Referee(batch.url) as referee:
        killed = torment(batch.url, folder, kills=kills, freezes=freezes, seed=seed)
        print(f"finished under torment: {batch.batch.counts.completed} of {requests}")
        drain(batch.url, folder, lease=LEASE)
        assert referee.integrity() == "ok"
    assert not failures(folder)
    lines = batch.lines()
    print(f"kills={killed} freezes={freezes} lost={len(lines.lost(expected))} doubled={len(lines.doubled)}")
    assert not lines.lost(expected)
    assert not lines.doubled
    assert not lines.errors
    assert all(answer == custom_id for custom_id, answer in lines.answers.items())


@pytest.mark.timeout(420)
def test_killed_and_frozen_workers_lose_and_double_nothing(store: Store, tmp_path: Path) -> None:
    """Mutant: queue.flush without the epoch check; the referee's trigger then refuses a thawed worker's flush."""
    check(store, tmp_path, kills=100, freezes=12, requests=6000)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_thousand_kills(store: Store, tmp_path: Path) -> None:
    """Mutant: as above."""
    check(store, tmp_path, kills=1000, freezes=120, requests=60_000)


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
