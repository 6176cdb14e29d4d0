"""Everything at once, at random, on one store: commands, workers, kills, freezes, terminated backends.

The rigs: tests/rigs/chaos.py mistreats, tests/rigs/audit.py looks at what came of it, and tests/rigs/referee.py refuses
in the database what may never happen. A run is repeated, as far as the machine allows, by ``CHAOS_SEED=… pytest``.
"""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest

from tests.rigs.audit import audit
from tests.rigs.chaos import LEASE, Chaos
from tests.rigs.commands import Home
from tests.rigs.referee import Referee
from tests.rigs.stores import mostly_sqlite as database_url  # noqa: F401  (a fixture)
from tests.rigs.workers import drain, failures
from vbatch.store import Store


def check(store: Store, folder: Path, *, seconds: float) -> None:
    seed = int(os.environ.get("CHAOS_SEED") or random.SystemRandom().randrange(2**32))
    print(f"CHAOS_SEED={seed}")
    place = folder / "chaos"
    place.mkdir()
    url = store.url.render_as_string(hide_password=False)
    chaos = Chaos(store, url, place, random.Random(seed))
    with Referee(url) as referee:
        chaos.run(seconds)
        drain(url, place, lease=LEASE)
        assert referee.integrity() == "ok"
    Home(folder, url).run("doctor", "queue", "--fix", "--yes", check=False)  # the drafts of killed commands
    verdict = audit(chaos)
    print(
        f"{len(chaos.commands)} commands, {verdict.requests} requests in {verdict.statuses.total()} batches: "
        f"lost={len(verdict.lost)} doubled={len(verdict.doubled)} wrong={len(verdict.wrong)} "
        f"wrongly ended={len(verdict.wrongly_ended)} left over={len(verdict.left_over)}"
    )
    print(", ".join(f"{what}={times}" for what, times in sorted((chaos.counted + verdict.statuses).items())))
    assert not failures(place), f"CHAOS_SEED={seed}"
    assert not verdict.faults, f"CHAOS_SEED={seed}"


@pytest.mark.timeout(600)
def test_half_a_minute_of_chaos(store: Store, tmp_path: Path) -> None:
    """Mutants: catalog.delete_batch with ``force`` alone in place of ``force and not is_open``. reuse._digest without
    the body. staging.sweep that removes what a living submit has stored.

    (Few of the freezes of so short a run end in the middle of another lease: the fence of queue.flush is for
    test_kill_loop.py.)
    """
    check(store, tmp_path, seconds=30)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_ten_minutes_of_chaos(store: Store, tmp_path: Path) -> None:
    """Mutants: as above."""
    check(store, tmp_path, seconds=600)
