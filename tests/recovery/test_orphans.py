"""Who may be ended, and who never: each kill rule with an innocent that only this rule saves.

The mutant of each test is named in it: with that clause taken out of ``vbatch/recovery/orphans.py`` (or, where it
says so, ``vbatch/system/processes.py``) the test fails, because an innocent is judged an orphan or ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.rigs import engines
from tests.rigs.waiting import until
from vbatch.recovery import evidence, orphans
from vbatch.recovery.orphans import Verdict
from vbatch.store import Store, registry
from vbatch.system import descendants, ending, processes
from vbatch.system.ending import Ended

NOBODY = 65534


@pytest.fixture
def state_dir(tmp_path: Path) -> Path:
    """The state folder of the workers, which holds the tokens of their loads."""
    return tmp_path / "state"


def verdicts(store: Store, state_dir: Path) -> list[Verdict]:
    return [suspect.verdict for suspect in orphans.suspects(store, state_dir)]


def test_an_orphan_is_found_and_ended(store: Store, state_dir: Path) -> None:
    with engines.orphan() as engine:
        engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=state_dir)
        assert verdicts(store, state_dir) == [Verdict.ORPHAN]
        assert orphans.clear(store, state_dir) == {engine.pid: Ended.TERMINATED}
        assert not engine.alive()
        assert registry.ledger(store) == []


def test_one_that_does_not_obey_is_killed(store: Store, state_dir: Path) -> None:
    with engines.orphan("stubborn") as engine:
        entry = engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=state_dir)
        assert orphans.end(store, [entry], state_dir, grace=timedelta(seconds=0.3)) == {
            engine.pid: Ended.KILLED
        }
        assert not engine.alive()


def test_a_process_with_the_same_title_is_left_alone(store: Store, state_dir: Path) -> None:
    """Mutant: taking processes by their title instead of the ledger."""
    with engines.orphan() as engine, engines.orphan() as foreign:
        engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=state_dir)
        orphans.clear(store, state_dir)
        assert not engine.alive()
        assert foreign.alive()


@pytest.mark.parametrize("state", ["sleeping", "stopped"])
@pytest.mark.parametrize("known_by", ["store", "state folder"])
def test_an_engine_whose_worker_lives_is_left_alone(
    store: Store, state_dir: Path, known_by: str, state: str
) -> None:
    """Mutants: no look at the worker of the ledger; none at the worker of the state folder (a changed row).

    A stopped (SIGSTOP) worker lives, and so may its engine.
    """
    with engines.orphan() as engine, engines.child() as worker:
        known = [worker.identity, engines.dead_identity()]
        in_store, in_folder = known if known_by == "store" else known[::-1]
        engines.in_ledger(store, engine.identity, worker=in_store, state_dir=state_dir, loaded_by=in_folder)
        for process in (engine, worker):
            os.kill(process.pid, signal.SIGSTOP if state == "stopped" else signal.SIGCONT)
        assert verdicts(store, state_dir) == [Verdict.WORKER_LIVES]
        assert orphans.clear(store, state_dir) == {}
        assert engine.alive()


def test_an_engine_whose_worker_is_marked_stopped_but_lives_is_left_alone(
    store: Store, state_dir: Path
) -> None:
    """A worker whose lease has lapsed continues when it is thawed. Mutant: believing stopped_at."""
    with engines.orphan() as engine, engines.child() as worker:
        entry = engines.in_ledger(
            store,
            engine.identity,
            worker=worker.identity,
            state_dir=state_dir,
            loaded_by=engines.dead_identity(),
        )
        registry.stop(store, worker=entry.worker)
        registry.record_processes(store, worker=entry.worker, processes=[entry])
        assert verdicts(store, state_dir) == [Verdict.WORKER_LIVES]


@pytest.mark.parametrize("title", ["ssh-tunnel", engines.FOREIGN_TITLE, "vbatch-4711::EngineCore"])
def test_a_row_in_the_store_proves_nothing(store: Store, state_dir: Path, title: str) -> None:
    """Whoever can write the store can write any process into the ledger. An engine of an older vbatch is one of those.

    Mutant: no ``Verdict.UNPROVEN``.
    """
    with engines.orphan(title=title) as innocent:
        engines.in_ledger(store, innocent.identity, worker=engines.dead_identity(), state_dir=state_dir)
        assert verdicts(store, state_dir) == [Verdict.UNPROVEN]
        assert orphans.clear(store, state_dir) == {}
        assert innocent.alive()


@pytest.mark.parametrize("fault", ["missing", "readable", "link", "fifo", "folder", "garbage"])
def test_a_token_that_only_the_title_carries_proves_nothing(
    store: Store, state_dir: Path, fault: str
) -> None:
    """Titles can be set by anyone. Mutants: no ``O_NOFOLLOW``, no ``O_NONBLOCK``, no look at the file's mode."""
    with engines.orphan() as innocent:
        engines.in_ledger(store, innocent.identity, worker=engines.dead_identity(), state_dir=state_dir)
        path = state_dir / evidence.FOLDER / engines.TOKEN
        match fault:
            case "readable":
                path.chmod(0o644)
            case "garbage":
                path.write_bytes(b"\xff")
            case "link":
                path.rename(path.with_name("elsewhere"))
                path.symlink_to("elsewhere")
            case _:
                path.unlink()
                if fault == "fifo":
                    os.mkfifo(path, 0o600)
                if fault == "folder":
                    path.mkdir(0o700)
        assert verdicts(store, state_dir) == [Verdict.UNPROVEN]
        assert orphans.clear(store, state_dir) == {}
        assert innocent.alive()


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to start processes of two users")
@pytest.mark.parametrize("of_root", ["process", "file"])
def test_root_ends_only_what_runs_as_the_workers_user(store: Store, state_dir: Path, of_root: str) -> None:
    """A user may set a title and keep a state folder. Mutant: root may end what belongs to any user."""
    with engines.orphan() as innocent:
        engines.in_ledger(store, innocent.identity, worker=engines.dead_identity(), state_dir=state_dir)
        path = state_dir / evidence.FOLDER / engines.TOKEN
        os.chown(path, NOBODY, -1)
        if of_root == "process":
            assert verdicts(store, state_dir) == [Verdict.OF_ANOTHER_USER]
    if of_root == "file":
        sleeper = ["bash", "-c", 'exec -a "$0" sleep 600', engines.TITLE]
        with engines.child("setpriv", f"--reuid={NOBODY}", "--clear-groups", *sleeper) as other:
            until(lambda: processes.title(other.pid).startswith(engines.TITLE))
            os.chown(path, 0, -1)
            engines.in_ledger(store, other.identity, worker=engines.dead_identity(), state_dir=state_dir)
            assert verdicts(store, state_dir) == [Verdict.OF_ANOTHER_USER]


def test_the_evidence_of_a_load_goes_with_its_last_process(store: Store, state_dir: Path) -> None:
    """Mutants: evidence that is removed under a living engine, or never."""
    living = evidence.leave(state_dir, worker=processes.current())
    with engines.orphan(title=f"{evidence.title_prefix(living)}::EngineCore"):
        orphans.forget_tokens(state_dir, own=True)
        assert list(evidence.tokens(state_dir)) == [living]
    orphans.clear(store, state_dir)
    assert list(evidence.tokens(state_dir)) == [living]
    dead = evidence.leave(state_dir, worker=engines.dead_identity())
    assert set(evidence.tokens(state_dir)) == {living, dead}
    orphans.clear(store, state_dir)
    assert list(evidence.tokens(state_dir)) == [living]
    orphans.forget_tokens(state_dir, own=True)
    assert not evidence.tokens(state_dir)


def test_a_recycled_pid_is_left_alone(store: Store, state_dir: Path) -> None:
    """Mutant: comparing pids without start times (``liveness`` in processes.py)."""
    with engines.orphan() as innocent:
        before = replace(innocent.identity, start_ticks=innocent.identity.start_ticks - 1)
        engines.in_ledger(store, before, worker=engines.dead_identity(), state_dir=state_dir)
        assert verdicts(store, state_dir) == []
        assert orphans.clear(store, state_dir) == {}
        assert innocent.alive()
        assert registry.ledger(store) == []


def test_a_descendant_of_a_living_worker_is_left_alone(store: Store, state_dir: Path) -> None:
    """Mutant: no look at the processes above it."""
    parent = (
        "import subprocess, sys; p = subprocess.Popen(['sleep', '600']); print(p.pid, flush=True); p.wait()"
    )
    with subprocess.Popen([sys.executable, "-c", parent], stdout=subprocess.PIPE, text=True) as worker:
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        below, above = processes.identify(pid), processes.identify(worker.pid)
        assert below is not None
        assert above is not None
        registry.register(store, identity=above, engine="vllm", gpu_uuid=None)
        engines.in_ledger(store, below, worker=engines.dead_identity(), state_dir=state_dir)
        try:
            assert verdicts(store, state_dir) == [Verdict.BELOW_A_WORKER]
            assert orphans.clear(store, state_dir) == {}
            assert processes.identify(pid) == below
        finally:
            worker.kill()
            os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become another user")
def test_another_users_process_is_left_alone(store: Store, state_dir: Path) -> None:
    """Seen by nobody (65534), the process belongs to root, and what proves it is hidden from him."""
    with engines.orphan() as engine:
        entry = engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=state_dir)
        workers = registry.of_boot(store, boot_id=engine.identity.boot_id)
        assert orphans.judge(entry, workers, state_dir) is Verdict.ORPHAN
        with _as(NOBODY):
            assert orphans.judge(entry, workers, state_dir) is Verdict.UNPROVEN


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to make a pid namespace")
def test_a_process_in_another_pid_namespace_is_left_alone(store: Store, state_dir: Path) -> None:
    """Mutant: no comparison of pid namespaces (``liveness``): the same number is another process here."""
    with engines.child("unshare", "--pid", "--fork", "sleep", "600") as outer, engines.orphan() as innocent:
        (inner,) = descendants.children(outer.pid)
        namespace = Path(f"/proc/{inner}/ns/pid").stat().st_ino
        assert namespace != innocent.identity.pid_namespace
        written_inside = replace(innocent.identity, pid_namespace=namespace)
        engines.in_ledger(store, written_inside, worker=engines.dead_identity(), state_dir=state_dir)
        assert verdicts(store, state_dir) == [Verdict.ELSEWHERE]
        assert orphans.clear(store, state_dir) == {}
        assert innocent.alive()
        os.kill(inner, signal.SIGKILL)


def test_this_process_and_those_above_it_are_left_alone(store: Store, state_dir: Path) -> None:
    """Mutant: no look at this process: doctor would end the shell that it runs in."""
    for pid in filter(None, (os.getpid(), os.getppid())):  # ``docker exec`` has no process above it
        identity = processes.identify(pid)
        assert identity is not None
        engines.in_ledger(store, identity, worker=engines.dead_identity(), state_dir=state_dir)
        assert verdicts(store, state_dir)[-1] is Verdict.OURSELVES
    assert orphans.clear(store, state_dir) == {}


def test_an_entry_with_an_unknown_worker_is_left_alone(store: Store, state_dir: Path) -> None:
    """Mutant: taking an unknown worker for a dead one."""
    with engines.orphan() as engine:
        entry = replace(
            engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=state_dir),
            worker="worker_none",
        )
        assert orphans.judge(entry, registry.recent(store, limit=9), state_dir) is Verdict.WORKER_UNKNOWN


def test_after_a_reboot_the_ledger_names_no_process(store: Store, state_dir: Path) -> None:
    """No process survives a power cycle: pid and start time of an earlier boot mean nothing."""
    with engines.orphan() as innocent:
        earlier = replace(innocent.identity, boot_id="00000000-0000-0000-0000-000000000000")
        engines.in_ledger(
            store,
            earlier,
            worker=replace(engines.dead_identity(), boot_id=earlier.boot_id),
            state_dir=state_dir,
        )
        assert verdicts(store, state_dir) == []
        assert orphans.clear(store, state_dir) == {}
        assert innocent.alive()


def test_a_worker_that_cannot_be_judged_is_not_taken_for_dead(store: Store, state_dir: Path) -> None:
    """It is in another container. Mutant: no ``Liveness.UNKNOWN in lives``."""
    with engines.orphan() as engine:
        elsewhere = replace(engines.dead_identity(), pid_namespace=1)
        engines.in_ledger(store, engine.identity, worker=elsewhere, state_dir=state_dir)
        assert verdicts(store, state_dir) == [Verdict.WORKER_UNKNOWN]


def test_a_host_that_is_renamed_has_the_same_processes(store: Store, state_dir: Path) -> None:
    """DHCP and hostnamectl do that. Mutant: ``host`` compared: a living worker would be gone, its chunks taken."""
    with engines.orphan() as engine, engines.child() as worker:
        entry = engines.in_ledger(
            store,
            engine.identity,
            worker=replace(worker.identity, host="before/"),
            state_dir=state_dir,
            loaded_by=engines.dead_identity(),
        )
        assert verdicts(store, state_dir) == [Verdict.WORKER_LIVES]
        renamed = replace(entry, identity=replace(engine.identity, host="before/"), worker="worker_none")
        assert orphans.judge(renamed, [], state_dir) is Verdict.WORKER_UNKNOWN
        dead = registry.register(store, identity=engines.dead_identity(), engine="vllm", gpu_uuid=None)
        (above,) = (replace(one, host="before/") for one in [processes.current()])
        registry.register(store, identity=above, engine="vllm", gpu_uuid=None)
        below = replace(entry, identity=worker.identity, worker=dead)
        workers = registry.of_boot(store, boot_id=above.boot_id)
        assert orphans.judge(below, workers, state_dir) is Verdict.BELOW_A_WORKER


@pytest.mark.parametrize("whose", ["ours", "its"])
def test_a_process_of_unknown_parents_is_not_ended(
    store: Store, state_dir: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """Mutant: taking unknown parents for none."""
    ancestors = processes.ancestors
    with engines.orphan() as engine:
        unknown = os.getpid() if whose == "ours" else engine.pid
        engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=state_dir)
        monkeypatch.setattr(processes, "ancestors", lambda pid: None if pid == unknown else ancestors(pid))
        expected = Verdict.OURSELVES if whose == "ours" else Verdict.BELOW_A_WORKER
        assert verdicts(store, state_dir) == [expected]


def test_one_that_even_sigkill_does_not_end_stays_in_the_ledger(
    store: Store, state_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits in the kernel. Mutant: no ``Ended.UNKILLABLE``; it would be forgotten, and hold its memory unseen."""
    monkeypatch.setattr(ending, "_gone_by", lambda _handle, _deadline: False)
    with engines.orphan() as engine:
        engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=state_dir)
        assert orphans.end(store, registry.ledger(store), state_dir) == {engine.pid: Ended.UNKILLABLE}
        assert [entry.identity for entry in registry.ledger(store)] == [engine.identity]


@contextmanager
def _as(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
