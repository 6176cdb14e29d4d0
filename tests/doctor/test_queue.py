"""The queue as doctor finds it after a worker died, and what it gives back."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest

from tests.rigs import engines
from tests.rigs.commands import Home, chats
from tests.rigs.filling import claim, take_in
from vbatch import config, pausing
from vbatch.doctor.checks import models as model_checks
from vbatch.doctor.checks import power, service, sqlite
from vbatch.doctor.checks import queue as checks
from vbatch.doctor.checks import store as store_checks
from vbatch.doctor.checks.gpu_memory import wanted_models
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level
from vbatch.doctor.running import Conduct, examine
from vbatch.store import Store, crashes, queue, registry
from vbatch.system.files import SUFFIX, atomic_file, temporary_name


@pytest.fixture
def facts(store: Store, monkeypatch: pytest.MonkeyPatch) -> Facts:
    monkeypatch.setenv("VBATCH_DATABASE_URL", store.url.render_as_string(hide_password=False))
    return Facts(settings=config.load())


def found(facts: Facts, *, fix: bool = False) -> dict[str, Finding]:
    findings = examine(
        (*store_checks.CHECKS, *checks.CHECKS), facts, Conduct(may_repair=lambda _finding: fix)
    ).findings
    return {finding.id: finding for finding in findings}


def dead_worker(store: Store) -> str:
    return registry.register(store, identity=engines.dead_identity(), engine="echo")


def test_an_empty_queue(facts: Facts) -> None:
    assert {finding.level for finding in found(facts).values()} == {Level.OK}


def test_what_waits_without_a_worker(facts: Facts, store: Store) -> None:
    batch = take_in(store, 300, name="labels")
    findings = found(facts)
    assert findings["queue.unfinished"].what == f"{batch.id} (labels): 0 of 300 requests are saved"
    assert findings["queue.no_worker"].commands == ("vbatch run-worker",)


@pytest.mark.parametrize(
    ("unit", "level", "command"),
    [
        (service.RUNNING.ok("vbatch-worker@0 is activating"), Level.OK, None),
        (service.FAILED.warn("between two tries"), Level.OK, None),
        (
            service.FAILED.fail("x", commands=("journalctl", "again")),
            Level.INFO,
            "again",
        ),
        (service.STOPPED.info("x", commands=("systemctl start x",)), Level.INFO, "systemctl start x"),
        (service.NONE.skip("no service to look at"), Level.INFO, "vbatch run-worker"),
    ],
)
@pytest.mark.usefixtures("waiting")
def test_the_service_brings_a_worker(
    facts: Facts, monkeypatch: pytest.MonkeyPatch, unit: Finding, level: Level, command: str | None
) -> None:
    """Mutant: ``vbatch run-worker`` all the same; a second worker is then refused, or takes the GPU's memory."""
    monkeypatch.setattr(service, "state", lambda: [unit])
    finding = found(facts)["queue.no_worker"]
    assert (finding.level, finding.commands) == (level, (command,) if command else ())


@pytest.fixture
def waiting(store: Store) -> None:
    take_in(store, 3)


def test_what_waits_with_one(facts: Facts, store: Store) -> None:
    take_in(store, 300)
    with engines.child() as process:
        registry.register(store, identity=process.identity, engine="vllm")
        assert found(facts)["queue.no_worker"].level is Level.OK


@pytest.mark.parametrize(
    ("engine", "model", "command"),
    [("echo", "qwen-8b", "vbatch run-worker"), ("vllm", "echo", "vbatch run-worker --engine echo")],
)
def test_what_waits_with_a_worker_of_another_engine(
    facts: Facts, store: Store, engine: str, model: str, command: str
) -> None:
    """Mutant: any worker is taken for one that serves what waits; "what waits goes on by itself", and nothing does."""
    take_in(store, [model] * 3)
    with engines.child() as process:
        registry.register(store, identity=process.identity, engine=engine)
        finding = found(facts)["queue.no_worker"]
        assert (finding.level, finding.what) == (Level.WARN, f"no worker can serve {model}")
        assert finding.commands == (command,)


def test_the_service_of_another_engine_is_named(
    facts: Facts, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before it starts its worker. Mutant: "the service brings one", which then leaves everything alone."""
    take_in(store, ["echo"] * 3)
    monkeypatch.setattr(Facts, "of_service", True)
    assert found(facts)["queue.no_worker"].commands == ("vbatch run-worker --engine echo",)


def test_a_pause_is_reported_and_no_worker_missed(
    facts: Facts, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: ``queue.no_worker`` that does not ask for a pause."""
    take_in(store, 300)
    facts.settings = facts.settings.model_copy(update={"state_dir": tmp_path, "pause_hours": ()})
    pausing.pause(facts.settings, everyone=False, now=False)
    findings = found(facts)
    assert findings["queue.no_worker"].level is Level.OK
    assert (findings["queue.paused"].level, findings["queue.paused"].commands) == (
        Level.INFO,
        ("vbatch resume",),
    )
    monkeypatch.setattr(pausing, "MACHINE_FILE", tmp_path / "etc" / pausing.NAME)
    pausing.pause(facts.settings, everyone=True, now=False)
    assert found(facts)["queue.paused"].commands == ("sudo vbatch resume --all",)


def test_no_model_is_looked_for_that_the_engine_leaves_alone(facts: Facts, store: Store) -> None:
    """Mutant: ``wanted_models`` without ``serves``; doctor then proposes "hf download echo"."""
    take_in(store, ["echo", "qwen-8b"])
    assert wanted_models(facts) == {"qwen-8b"}
    findings = examine((*store_checks.CHECKS, *model_checks.CHECKS), facts, Conduct()).findings
    assert [found.commands for found in findings if found.id == "engine.model"] == [("hf download qwen-8b",)]


def test_chunks_of_the_dead_are_given_back_only_when_asked(facts: Facts, store: Store) -> None:
    """Mutant: a repair that does not call ``release_chunks``, or one that is carried out unasked."""
    take_in(store, 600)
    claim(store, dead_worker(store), chunks=2)
    assert found(facts)["queue.stale"].level is Level.WARN
    assert queue.waiting(store) != []
    assert len(claim(store, dead_worker(store), chunks=9)) == 1  # two of three are still leased
    fixed = found(facts, fix=True)["queue.stale"]
    assert (fixed.level, "3 returned" in fixed.what) == (Level.FIXED, True)
    assert len(claim(store, dead_worker(store), chunks=9)) == 3


def test_chunks_of_the_living_stay_theirs(facts: Facts, store: Store) -> None:
    take_in(store, 300)
    with engines.child() as process:
        who = registry.register(store, identity=process.identity, engine="echo")
        (lease, _) = claim(store, who, chunks=2)
        assert found(facts, fix=True)["queue.stale"].level is Level.OK
        assert lease.key in queue.held_by(store, worker=who)


def test_suspects_are_reported(facts: Facts, store: Store) -> None:
    batch = take_in(store, 4)
    who = dead_worker(store)
    for _ in range(2):
        leases = claim(store, who, chunks=9)
        crashes.record_engine_crash(
            store,
            worker=who,
            suspects_of={lease.key: [request.seq for request in lease.requests] for lease in leases},
            cause="CUDA error",
        )
    assert batch.id in found(facts)["queue.poisoned"].what


def test_suspects_of_ending_workers_are_reported(facts: Facts, store: Store) -> None:
    """Mutant: a look at the deaths of engines alone."""
    batch = take_in(store, 4)
    for number in range(2):
        assert found(facts)["queue.poisoned"].level is Level.OK, number
        who = dead_worker(store)
        claim(store, who)
        crashes.reclaim(store, worker=who, heartbeat=None, vanished=True)
    what = found(facts)["queue.poisoned"].what
    assert what == f"4 requests of {batch.id} were running when an engine or a worker crashed, 2 times"


def test_files_that_do_not_match(tmp_path: Path) -> None:
    """Mutant: looking for the file alone."""
    home = Home(tmp_path, f"sqlite:///{tmp_path / 'vbatch.db'}", {"VBATCH_ENGINE": "echo"})
    home.submit(chats(20))
    home.run("run-worker", "--drain")
    output = tmp_path / "prompts.output.jsonl"

    def line() -> str:
        shown = home.run("doctor", "queue").stdout.splitlines()
        return next((text for text in shown if "prompts.output.jsonl" in text), "")

    assert line() == ""
    output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:15]))
    assert "has 15 lines; vbatch wrote 20" in line()
    output.unlink()
    assert "is no longer there" in line()
    batch = home.run("list", "--quiet").stdout.strip()
    home.run("results", batch, "-o", output)
    assert line() == ""


def test_a_path_that_a_newer_batch_was_given_is_not_missed(tmp_path: Path) -> None:
    """The answers were moved away and the file submitted again. Mutant: every batch's paths are looked at."""
    home = Home(tmp_path, f"sqlite:///{tmp_path / 'vbatch.db'}", {"VBATCH_ENGINE": "echo"})
    for count in (20, 15):
        home.submit(chats(count))
        home.run("run-worker", "--drain")
        kept = tmp_path / f"kept-{count}"
        (tmp_path / "prompts.output.jsonl").rename(kept) if count == 20 else None
    assert "prompts.output.jsonl" not in home.run("doctor", "queue").stdout


def test_half_written_files_are_removed_once_nobody_writes_them(
    facts: Facts, store: Store, tmp_path: Path
) -> None:
    take_in(store, 3, output_path=str(tmp_path / "out.jsonl"), error_path=str(tmp_path / "err.jsonl"))
    script = (
        "import sys, time\n"
        "from pathlib import Path\n"
        "from vbatch.system.files import atomic_file\n"
        "with atomic_file(Path(sys.argv[1]), tag='batch_1'):\n"
        "    print('writing', flush=True)\n"
        "    time.sleep(60)\n"
    )
    mine = tmp_path / ".notes.vbatch-temporary"
    mine.touch()
    with subprocess.Popen(
        [sys.executable, "-c", script, tmp_path / "out.jsonl"], stdout=subprocess.PIPE
    ) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        assert "queue.leftovers" not in found(facts, fix=True)
        os.kill(writer.pid, signal.SIGKILL)
    assert found(facts)["queue.leftovers"].level is Level.WARN
    assert found(facts, fix=True)["queue.leftovers"].level is Level.FIXED
    assert "queue.leftovers" not in found(facts)
    assert mine.exists()


def test_a_half_written_file_that_is_begun_anew_meanwhile_is_left(
    facts: Facts, store: Store, tmp_path: Path
) -> None:
    """Its name is always the same. Mutants: ``unlink`` without the lock; without the look at who has the name."""
    take_in(store, 3, output_path=str(tmp_path / "out.jsonl"), error_path=str(tmp_path / "err.jsonl"))
    temporary = temporary_name(tmp_path / "out.jsonl", "batch_1")
    temporary.touch()
    repair = found(facts)["queue.leftovers"].repair
    assert repair is not None
    with atomic_file(tmp_path / "out.jsonl", tag="batch_1") as file:
        assert "0 removed" in repair.carry_out()
        file.write(b"{}\n")
    assert (tmp_path / "out.jsonl").read_bytes() == b"{}\n"


def test_a_half_written_file_that_another_one_replaced_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between its opening and its lock. Mutant: no ``samestat``."""
    path = tmp_path / f".batch_1.x{SUFFIX}"
    path.touch()
    flock = fcntl.flock

    def replaced(stream: BinaryIO, how: int) -> None:
        path.unlink()
        path.write_bytes(b"anew")
        flock(stream, how)

    monkeypatch.setattr(fcntl, "flock", replaced)
    assert "0 removed" in checks._remove([path])
    assert path.read_bytes() == b"anew"


def test_many_batches_are_no_long_list(facts: Facts, store: Store) -> None:
    """Mutant: a line for each."""
    for _ in range(9):
        take_in(store, 1)
    findings = examine((*store_checks.CHECKS, *checks.CHECKS), facts, Conduct()).findings
    told = [finding.what for finding in findings if finding.id == "queue.unfinished"]
    assert (len(told), told[-1]) == (6, "4 others are not finished either")


def test_of_a_store_that_is_not_sound_nothing_is_said_or_repaired(
    facts: Facts, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant: needing only that it answers: "saved results are all there", of a damaged file."""
    claim(store, dead_worker(store), chunks=2)
    registry.register(store, identity=replace(engines.dead_identity(), boot_id="before"), engine="echo")
    broken = sqlite.DAMAGED.fail("it is damaged", commands=())
    state = replace(store_checks.CHECKS[1], run=lambda _facts: [broken])
    checked = (store_checks.CHECKS[0], state, power.CHECKS[0], *checks.CHECKS)
    findings = examine(checked, facts, Conduct(may_repair=lambda _finding: True)).findings
    said = [finding.what for finding in findings if finding.id.startswith(("queue", "host"))]
    said.remove("workers are not paused")  # of which the store knows nothing
    assert set(said) == {"skipped: needs a sound store"}
    assert len(said) == len(checks.CHECKS)
