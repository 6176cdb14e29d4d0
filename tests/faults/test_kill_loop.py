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

from tests.rigs.commands import Home, Lines, chats
from tests.rigs.referee import Referee
from tests.rigs.workers import drain, kill, start_worker

LEASE = timedelta(seconds=1)
FREEZE = 1.8  # seconds: longer than the lease, and about as long as a chunk takes (FACTS: else no mutant is caught)


def torment(home: Home, *, kills: int, freezes: int, seed: int) -> int:
    """Keep two workers alive on a batch while killing and freezing them; return how many were killed."""
    dice = random.Random(seed)
    options = {"lease": LEASE, "echo_latency": timedelta(milliseconds=250), "max_inflight": 64}
    workers = [start_worker(home.database_url, home.path, **options) for _ in range(2)]
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
            workers.append(start_worker(home.database_url, home.path, **options))
    for _, frozen in thaw_at.values():
        kill(frozen)
    for worker in workers:
        kill(worker)
    return killed


def check(home: Home, *, kills: int, freezes: int, requests: int) -> None:
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed={seed}")
    expected = chats(requests)
    batch_id = home.submit(expected)
    with Referee(home.database_url) as referee:
        killed = torment(home, kills=kills, freezes=freezes, seed=seed)
        drain(home.database_url, home.path, lease=LEASE)
        assert referee.integrity() == "ok"
    batch = home.batch(batch_id)
    lines = Lines.of(batch)
    print(f"kills={killed} freezes={freezes} lost={len(lines.lost(expected))} doubled={len(lines.doubled)}")
    assert batch["status"] == "completed"
    assert not lines.lost(expected)
    assert not lines.doubled
    assert not lines.errors
    assert all(answer == custom_id for custom_id, answer in lines.answers.items())


@pytest.mark.timeout(420)
def test_killed_and_frozen_workers_lose_and_double_nothing(home: Home) -> None:
    """Mutant: queue.flush without the epoch check; the referee's trigger then refuses a thawed worker's flush."""
    check(home, kills=100, freezes=12, requests=6000)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_two_thousand_kills(home: Home) -> None:
    """Mutant: as above."""
    check(home, kills=1000, freezes=120, requests=60_000)


def test_work_folder_is_clean_afterwards(home: Home, tmp_path: Path) -> None:
    """Mutant: jsonl's atomic writer leaves its temporary file; batches.finalize does not remove a dead one's."""
    batch_id = home.submit(chats(3000))
    for _ in range(15):
        worker = start_worker(home.database_url, home.path, lease=LEASE)
        time.sleep(random.uniform(0.05, 0.6))
        kill(worker)
    drain(home.database_url, home.path, lease=LEASE)
    assert home.batch(batch_id)["status"] == "completed"
    assert not [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")]
