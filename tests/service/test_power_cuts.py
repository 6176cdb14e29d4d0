"""The power fails again and again while a batch runs; no person types anything; nothing is lost or doubled.

A cut takes everything that was not on the disk, at a random moment from the first instant of a boot to the
middle of the work. What was committed before a cut must be there after it.

The mutants that these cuts must catch are at the end of this module, and run in the long run.
"""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from statistics import median

import pytest

from tests.rigs.guest import Guest, lost_or_doubled

pytestmark = pytest.mark.root

SETTINGS = {"VBATCH_ECHO_LATENCY_MS": "200", "VBATCH_MAX_INFLIGHT": "64"}  # 320 requests a second
REQUESTS_PER_CUT = 300  # so that the batch lasts until the last cut
JUST_COMMITTED = 2 / 3  # of the cuts under work come in the instant after a commit, the others at any moment
SLOW_START = 0.7  # seconds that PostgreSQL lets connections down, and as long again says "starting up"


def cut_again_and_again(guest: Guest, *, cuts: int, seed: int) -> list[float]:
    """Cut the power so often; return the seconds from a boot to its first new result, where one was in time.

    How long a boot takes depends on the host: the first one is waited for, and the power fails at any moment
    from zero to twice that time in the others, so that about half of them come to work.
    """
    moments = random.Random(seed)
    firsts: list[float] = []
    for cut in range(cuts):
        kept = guest.recorded()
        moment = moments.uniform(0, 2 * firsts[0]) if cut else 0.0
        if not cut:
            guest.recorded(kept)
        if not cut or guest.recorded_within(max(0.1, moment - guest.machine.uptime), kept) is not None:
            firsts.append(guest.machine.uptime)
        time.sleep(max(0.0, moment - guest.machine.uptime))
        saved = guest.recorded_within(1) or 0
        if saved > kept and moments.random() < JUST_COMMITTED:
            saved = guest.recorded_within(2, saved) or saved
        guest.machine.cut_power()
        guest.machine.boot()
        found = guest.recorded()
        assert found >= saved, f"{saved - found} committed results are gone"
    return firsts


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
@pytest.mark.parametrize("cuts", [4, pytest.param(99, marks=[pytest.mark.long, pytest.mark.timeout(7200)])])
def test_random_power_cuts(guest: Guest, tmp_path: Path, store: str, cuts: int) -> None:
    if store == "postgresql":
        guest.add_postgresql(closing=SLOW_START, starting=SLOW_START)
    guest.install(env=SETTINGS)
    count = cuts * REQUESTS_PER_CUT
    batch_id = guest.submit(count)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    guest.machine.cut_power()
    guest.machine.boot()
    firsts = cut_again_and_again(guest, cuts=cuts, seed=seed)
    guest.recorded(count - 1)
    guest.machine.wait_for("the batch is done", guest.finished(batch_id))
    guest.machine.cut_power()  # completed means durable: the files are whole after this one too
    guest.machine.boot()
    lapsed = [entry for entry in guest.journal() if "lease_lapsed" in entry]
    assert not lapsed, "after a boot no worker waits for a lease of an earlier one"
    batch = guest.batch(batch_id)
    assert batch["status"] == "completed"
    assert batch["request_counts"] == {"total": count, "completed": count, "failed": 0}
    lines = guest.lines(tmp_path, batch)
    assert lost_or_doubled(lines, count) == []
    assert lines.answers == {f"r-{i}": f"r-{i}" for i in range(count)}
    story = json.loads(guest.vbatch("doctor", "host", "--json", check=False).stdout)["story"]
    assert story.startswith("power was lost, or the machine was reset, at about ")
    assert story.endswith("nothing was lost: every batch is finished")
    assert len(firsts) > cuts / 10, "too few boots came to work; the cuts tested nothing"
    print(
        f"{cuts + 2} power cuts on {store}: 0 lost, 0 doubled of {count}; from boot to the first new result "
        f"{min(firsts):.1f} to {max(firsts):.1f} s, mostly {median(firsts):.1f} s"
    )


MUTANTS = {
    "SQLite does not sync": (
        "sqlite",
        "vbatch/store/database/backends/sqlite.py",
        "synchronous=EXTRA",
        "synchronous=OFF",
    ),
    "PostgreSQL does not sync": (
        "postgresql",
        "vbatch/store/database/backends/postgresql.py",
        '"synchronous_commit": "on"',
        '"synchronous_commit": "off"',
    ),
    "an earlier boot's worker is taken for alive": (
        "sqlite",
        "vbatch/system/processes.py",
        "return Liveness.GONE if identity.host == _host() else Liveness.UNKNOWN",
        "return Liveness.UNKNOWN",
    ),
    "the service does not start at boot": (
        "sqlite",
        "vbatch/service/install.py",
        'systemd.systemctl("enable", *missing)',
        "pass",
    ),
}


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_cuts_catch(guest: Guest, tmp_path: Path, mutant: str) -> None:
    store, module, old, new = MUTANTS[mutant]
    guest.mutate(module, old, new)
    with pytest.raises(AssertionError):
        test_random_power_cuts(guest, tmp_path, store, 20)
