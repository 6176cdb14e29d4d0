"""Everyday troubles of a service, on a real machine: what systemd, the worker and the unit make of them."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest

from tests.rigs.guest import HOME, PASSWORD, UNIT, Guest, lost_or_doubled

pytestmark = pytest.mark.root

SLOW = {"VBATCH_ECHO_LATENCY_MS": "1000", "VBATCH_MAX_INFLIGHT": "16"}

# Blocks the event loop for ever at SIGUSR1, and shortens the time after which the worker counts as hung, so
# that the test need not take a minute. The threads of the worker continue, as they would in a real hang.
HANG = """
import signal, time
def impatient(*_):
    from datetime import timedelta
    import vbatch.worker.heartbeat
    vbatch.worker.heartbeat.STALLED = timedelta(seconds=2)
def hang(*_):
    impatient()
    time.sleep(3600)
signal.signal(signal.SIGUSR1, hang)
signal.signal(signal.SIGUSR2, impatient)
"""
IMPATIENT = "[Service]\nEnvironment=PYTHONPATH=/opt/hang\nWatchdogSec=4s\nRestartSec=1s\n"


@pytest.mark.parametrize("late", [30, pytest.param(40, marks=pytest.mark.long)])
def test_a_late_database_is_waited_for_without_a_single_failure(guest: Guest, late: int) -> None:
    """Accepting and closing, then starting up, then there. Mutant: Restart= with the burst limit of systemd."""
    guest.add_postgresql(closing=late / 2, starting=late / 2)
    guest.sudo("install-service", "--no-now", "--", "--engine", "echo")
    # No help by doctor, and less time than the database takes: the worker waits, and extends it.
    guest.drop_in("[Service]\nExecStartPre=\nTimeoutStartSec=15s\n")
    guest.machine.sync()
    guest.machine.cut_power()
    guest.machine.boot()
    guest.machine.wait_for("the worker says what it waits for", guest.says("waiting for the store"))
    guest.machine.wait_for("it is ready", guest.is_active())
    assert guest.unit("NRestarts") == "0"
    assert guest.unit("Result") == "success"


def test_a_wrong_password_stops_the_unit_at_once(guest: Guest) -> None:
    """Mutant: without RestartPreventExitStatus=78 it is tried again for ever."""
    guest.add_postgresql()
    guest.store_url = guest.store_url.replace(PASSWORD, "wrong-horse")
    done = guest.sudo("install-service", "--", "--engine", "echo", check=False)
    assert done.returncode == 1
    assert "refuses vbatch: wrong password" in done.stderr
    time.sleep(1)
    assert guest.unit("ActiveState") == "failed"
    assert guest.unit("ExecMainStatus") == "78"
    assert guest.unit("NRestarts") == "0"
    said = "\n".join(guest.journal())
    assert re.search(r"refuses vbatch: wrong password", said)
    assert "hint: " in said
    assert "wrong-horse" not in said


def test_kill_9_is_followed_by_a_restart(guest: Guest) -> None:
    guest.install(env=SLOW)
    guest.drop_in("[Service]\nRestartSec=1s\n")
    batch_id = guest.submit(48)
    guest.recorded(0)
    before = guest.unit("MainPID")
    guest.machine.run(["systemctl", "kill", "--signal=KILL", "--kill-who=main", UNIT])
    guest.machine.wait_for("it is restarted", guest.has_restarted(before))
    guest.machine.wait_for("the batch is done", guest.finished(batch_id))
    assert guest.unit("NRestarts") == "1"


def test_a_hung_loop_is_restarted_by_the_watchdog(guest: Guest) -> None:
    """Mutant: a heartbeat that does not look at the pulse; its thread keeps the hung worker for ever."""
    guest.install(env=SLOW)
    guest.machine.write("/opt/hang/sitecustomize.py", HANG)
    guest.drop_in(IMPATIENT)
    guest.machine.run(["systemctl", "restart", UNIT])
    batch_id = guest.submit(48)
    guest.recorded(0)
    before = guest.unit("MainPID")
    guest.machine.run(["systemctl", "kill", "--signal=USR1", "--kill-who=main", UNIT])
    guest.machine.wait_for("the watchdog restarts it", guest.has_restarted(before))
    assert any("Watchdog timeout" in line for line in guest.journal())
    guest.machine.wait_for("the batch is done", guest.finished(batch_id))


def test_an_idle_worker_outlives_an_outage_of_its_database(guest: Guest) -> None:
    """Waiting for the database is no hang. Mutant: no sign of life while a call to the store lasts."""
    guest.add_postgresql()
    guest.machine.write("/opt/hang/sitecustomize.py", HANG)
    guest.sudo("install-service", "--no-now", "--", "--engine", "echo")
    guest.drop_in(IMPATIENT)
    guest.machine.run(["systemctl", "start", UNIT])
    guest.machine.run(["systemctl", "kill", "--signal=USR2", "--kill-who=main", UNIT])
    guest.machine.run(["systemctl", "stop", "postgresql.service"])
    guest.machine.wait_for("the worker says what it waits for", guest.says("waiting for the store"))
    time.sleep(9)  # twice what the watchdog allows
    assert guest.unit("NRestarts") == "0"
    guest.machine.run(["systemctl", "start", "postgresql.service"])
    batch_id = guest.submit(5)
    guest.machine.wait_for("the batch is done", guest.finished(batch_id))
    assert guest.unit("NRestarts") == "0"


def test_stopping_in_the_middle_of_a_batch_drains(guest: Guest, tmp_path: Path) -> None:
    """Running requests finish and are saved; none fails. Mutant: KillMode=control-group with SIGKILL at once."""
    guest.install(env=SLOW)
    count = 320  # 20 s of work: it is not done when the stop comes
    batch_id = guest.submit(count)
    done = guest.recorded(0)
    guest.machine.run(["systemctl", "stop", UNIT])
    assert guest.unit("Result") == "success"
    assert guest.unit("ExecMainStatus") == "0"
    counts = guest.batch(batch_id)["request_counts"]
    assert isinstance(counts, dict)
    assert counts["failed"] == 0
    assert done < counts["completed"] < count, "what ran when the stop came was not saved"
    guest.machine.run(["systemctl", "start", UNIT])
    guest.machine.wait_for("the batch is done", guest.finished(batch_id))
    assert lost_or_doubled(guest.lines(tmp_path, guest.batch(batch_id)), count) == []


def test_a_drain_limit_that_was_raised_later_is_no_reason_to_cut_a_stop_off(guest: Guest) -> None:
    """The unit's TimeoutStopSec is of the drain limit at its installation. Mutant: no EXTEND_TIMEOUT at a stop."""
    guest.install(env={"VBATCH_ECHO_LATENCY_MS": "7000", "VBATCH_MAX_INFLIGHT": "4"})
    guest.drop_in("[Service]\nTimeoutStopSec=3s\nExecStopPost=\n")
    batch_id = guest.submit(4)
    guest.machine.wait_for("the requests run", guest.says("0 of 4 requests"))
    guest.machine.run(["systemctl", "stop", UNIT])
    assert guest.unit("Result") == "success"
    assert guest.batch(batch_id)["request_counts"] == {"total": 4, "completed": 4, "failed": 0}


def test_a_model_is_there_before_there_is_work(guest: Guest) -> None:
    """At each boot. Mutant: a unit without the options that the person gave."""
    guest.install("--preload", "echo")
    guest.machine.cut_power()
    guest.machine.boot()
    guest.machine.wait_for("it is ready", guest.is_active())
    guest.machine.wait_for("the model is loaded", guest.journal_has("engine.loaded model=echo"))


def test_an_upgrade_with_a_migration_in_the_middle_of_a_batch(guest: Guest) -> None:
    """The next version's schema is newer; reload-or-restart takes it up and works on."""
    guest.install(env=SLOW)
    batch_id = guest.submit(48)
    guest.recorded(0)
    upgrade(guest)
    guest.machine.run(["systemctl", "reload-or-restart", UNIT])
    guest.machine.wait_for("the batch is done", guest.finished(batch_id))
    assert any("store.migrated" in line for line in guest.journal()[-20:])
    assert guest.unit("NRestarts") == "0"


def test_the_journal_tells_the_story_with_priorities(guest: Guest) -> None:
    guest.install()
    batch_id = guest.submit(5)
    guest.machine.wait_for("the batch is done", guest.finished(batch_id))
    entries = guest.machine.journal("--unit", UNIT, "--identifier", "vbatch")
    said = {entry["MESSAGE"].split()[0]: entry["PRIORITY"] for entry in entries}
    assert said["worker.ready"] == "6"
    assert said["batch.completed"] == "6"
    assert not any(re.match(r"<\d>|\d{4}-\d\d-\d\d", entry["MESSAGE"]) for entry in entries)


def test_the_worker_is_confined_and_runs_as_the_person(guest: Guest) -> None:
    guest.install()
    guest.machine.wait_for("it is ready", guest.is_active())
    pid = guest.unit("MainPID")
    status = guest.machine.read(f"/proc/{pid}/status")
    assert re.search(r"^NoNewPrivs:\s1$", status, re.M)
    assert re.search(r"^Seccomp:\s2$", status, re.M)
    assert re.search(r"^CapBnd:\s0+$", status, re.M)
    assert (
        guest.machine.run(["stat", "-c", "%U %a", f"{HOME}/.local/share/vbatch/vbatch.db"]).stdout
        == "alice 600\n"
    )


def upgrade(guest: Guest) -> None:
    """Put a version with one more migration into the guest, as pip would; the host's stays as it is."""
    store = Path(__file__).parents[2] / "vbatch" / "store" / "database"
    script = (
        'from alembic import op\nimport sqlalchemy as sa\nrevision = "{new}"\ndown_revision = "{old}"\n'
        'def upgrade():\n    op.add_column("batch", sa.Column("of_the_future", sa.Text()))\n'
    )
    source = (store / "migrate.py").read_text()
    old = re.search(r'"(\d{4})",?\)', source)
    assert old is not None
    new = f"{int(old[1]) + 1:04}"
    guest.machine.write(str(store / "migrate.py"), source.replace(old[0], f'"{old[1]}", "{new}")'))
    guest.machine.write(
        str(store / f"migrations/versions/{new}_of_the_future.py"), script.format(new=new, old=old[1])
    )
