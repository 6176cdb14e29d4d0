"""Checks of the queue: what waits, what resumes by itself, what dead workers left, and outputs that are missing."""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from vbatch import disks, jsonl, processes
from vbatch.doctor import service
from vbatch.doctor.catalogue import Meaning
from vbatch.doctor.checks import Check, Group
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Finding, Level, Repair, info, ok
from vbatch.engine import kinds
from vbatch.processes import Liveness
from vbatch.protocol import BatchStatus
from vbatch.store import catalog, overview, registry
from vbatch.store.records import Batch
from vbatch.text import harmless
from vbatch.worker import recovery

RECENT = 50  # batches whose files are looked for
SHOWN = 5  # unfinished batches that are told one by one
COUNTED = 5  # newest batches whose files are read, so that their lines can be counted

MEANINGS = {
    "queue.unfinished": Meaning(
        means="Batches that are not finished, and how far each is.",
        remedy="Nothing: a running worker goes on by itself. Without one: vbatch run-worker.",
    ),
    "queue.no_worker": Meaning(
        means="Batches wait, and no worker runs, or none whose engine serves their models: the echo engine serves "
        "the model `echo` alone, vLLM every other one.",
        remedy="vbatch run-worker, or vbatch install-service once for all; for the model `echo`: "
        "vbatch run-worker --engine echo.",
    ),
    "queue.stale": Meaning(
        means="Chunks are leased to workers that are gone.",
        remedy="vbatch doctor --fix gives them back; so does the next worker when it starts.",
    ),
    "queue.poisoned": Meaning(
        means="Some requests were in the engine each time it died. vbatch narrows them down by halving.",
        remedy="Nothing: the one that does it ends as an error line (engine_crash), the others complete.",
    ),
    "queue.outputs": Meaning(
        means="A finished batch's file is not where vbatch wrote it, or has another number of lines by now.",
        remedy="vbatch results ID -o FILE writes it again, from the store.",
    ),
    "queue.leftovers": Meaning(
        means="Half-written files of ours lie in a folder of outputs; whoever wrote them is gone.",
        remedy="vbatch doctor --fix removes them.",
    ),
}


def _unfinished(facts: Facts) -> Iterator[Finding]:
    """Say what is in the queue, and who works on it."""
    unfinished = [status for status in BatchStatus if not status.final]
    batches = catalog.recent(facts.records, limit=RECENT, statuses=unfinished)
    if not batches:
        yield ok("queue.unfinished", "no batch is unfinished")
        return
    for batch in batches[:SHOWN]:
        yield info("queue.unfinished", _progress(batch))
    if len(batches) > SHOWN:
        more = f"{len(batches) - SHOWN}{' or more' if len(batches) == RECENT else ''} others"
        yield info("queue.unfinished", f"{more} are not finished either", commands=("vbatch list",))
    alive = [
        worker
        for worker in registry.live(facts.records)
        if processes.liveness(worker.identity) is not Liveness.GONE
    ]
    engines = [worker.engine for worker in alive] + [facts.settings.engine] * facts.of_service
    unserved = [
        backlog.model
        for backlog in overview.left(facts.records).models
        if backlog.waiting and not any(kinds.may_serve(engine, backlog.model) for engine in engines)
    ]
    commands = _worker_commands(facts, unserved)
    if engines and unserved:
        yield Finding(
            id="queue.no_worker",
            level=Level.WARN,
            what=f"no worker can serve {_named(unserved)}",
            why="the workers have another engine; nothing is lost, the requests wait for one that serves them",
            commands=commands,
        )
    elif alive:
        workers = "worker is" if len(alive) == 1 else "workers are"
        yield ok("queue.no_worker", f"{len(alive)} {workers} running; what waits goes on by itself")
    elif facts.of_service:
        yield ok("queue.no_worker", "no worker is running yet; the service brings one")
    else:
        yield _without_worker(service.brings_a_worker(), commands)


def _worker_commands(facts: Facts, models: Sequence[str]) -> tuple[str, ...]:
    """Return the commands that start workers for these models, or any worker where only files are to be written."""
    engine = facts.settings.engine
    commands = dict.fromkeys(kinds.worker_command(model, default=engine) for model in models)
    return tuple(commands) or ("vbatch run-worker",)


def _named(models: Sequence[str]) -> str:
    shown = ", ".join(harmless(model) for model in models[:SHOWN])
    return shown if len(models) <= SHOWN else f"{shown} and {len(models) - SHOWN} more models"


def _without_worker(unit: Finding | None, commands: tuple[str, ...]) -> Finding:
    if unit is not None and unit.level in (Level.OK, Level.WARN):  # it starts, or is between two tries
        return ok("queue.no_worker", "no worker is running yet; the service brings one", unit.what)
    return Finding(
        id="queue.no_worker",
        level=Level.INFO,
        what="no worker is running",
        why="nothing is lost; the queue waits for one",
        commands=unit.commands[-1:] if unit is not None else commands,
    )


def _progress(batch: Batch) -> str:
    counts = batch.counts
    saved = counts.completed + counts.failed
    name = f" ({batch.name})" if batch.name else ""
    return f"{batch.id}{name}: {saved:,} of {counts.total:,} requests are saved"


def _stale(facts: Facts) -> Iterator[Finding]:
    """Look for chunks of workers whose processes are provably gone."""
    dead = recovery.gone(facts.records)
    chunks = overview.running(facts.records, workers=[worker.id for worker in dead])
    if not chunks:
        yield ok("queue.stale", "no chunk is leased to a dead worker")
        return
    held = f"{chunks} chunk{'s' if chunks > 1 else ''}"
    yield Finding(
        id="queue.stale",
        level=Level.WARN,
        what=f"{held} leased to {len(dead)} worker{'s' if len(dead) > 1 else ''} that ended without a word",
        why="their requests go back to the queue when the next worker starts, without waiting for any lease",
        evidence=tuple(
            f"{worker.id}: pid {worker.identity.pid} of boot {worker.identity.boot_id}" for worker in dead
        ),
        commands=("vbatch doctor queue --fix",),
        repair=Repair(
            question=f"Give {held} back to the queue?",
            carry_out=lambda: f"{recovery.release_chunks(facts.records)} given back",
        ),
    )


def _poisoned(facts: Facts) -> Iterator[Finding]:
    """Look for chunks that took engines or workers down."""
    troubled = overview.troubled(facts.records)
    for batch_id, requests, deaths in troubled:
        yield Finding(
            id="queue.poisoned",
            level=Level.WARN,
            what=f"{requests} requests of {batch_id} were running when an engine or a worker died, {deaths} times",
            why="one of them may be the cause; they are halved until it is found, the others complete",
            commands=(f"vbatch status {batch_id}",),
        )
    if not troubled:
        yield ok("queue.poisoned", "no request is suspected of ending engines")


def _outputs(facts: Facts) -> Iterator[Finding]:
    """Compare the files of finished batches with the store, and look for half-written ones."""
    batches = catalog.recent(facts.records, limit=RECENT)
    ended = _with_files_of_their_own(batches)
    wrong = [
        finding
        for position, batch in enumerate(ended)
        for finding in _mismatches(batch, count=position < COUNTED)
    ]
    yield from wrong
    folders = {Path(path).parent for batch in batches for path in (batch.output_path, batch.error_path)}
    left = [path for folder in sorted(folders) for path in jsonl.abandoned(folder)]
    if left:
        yield Finding(
            id="queue.leftovers",
            level=Level.WARN,
            what=f"{len(left)} half-written file{'s' if len(left) > 1 else ''} of ours, which nobody writes any more",
            why="they take space; the whole files are or will be written anew",
            evidence=tuple(map(str, left)),
            commands=("vbatch doctor queue --fix",),
            repair=Repair(question="Remove them?", carry_out=lambda: _remove(left)),
        )
    if not wrong and not left:
        yield ok("queue.outputs", "the files of finished batches are where they were written")


def _with_files_of_their_own(batches: Sequence[Batch]) -> list[Batch]:
    """Return those that have ended and whose file names no newer batch was given since."""
    taken: set[str] = set()
    found: list[Batch] = []
    for batch in batches:
        names = {batch.output_path, batch.error_path}
        if batch.status.final and batch.status is not BatchStatus.FAILED and not names & taken:
            found.append(batch)
        taken |= names
    return found


def _mismatches(batch: Batch, *, count: bool) -> Iterator[Finding]:
    """Compare a batch's two files with what it says of itself; their lines are counted only where asked for."""
    for path, lines, flag in (
        (Path(batch.output_path), batch.counts.completed, ""),
        (Path(batch.error_path), batch.counts.total - batch.counts.completed, " --errors"),
    ):
        there = disks.exists(path)
        place = path.with_name(f"{path.name}.again") if there else path
        again = (f"vbatch results {batch.id}{flag} -o {shlex.quote(str(place))}",)
        if lines and not there:
            yield info(
                "queue.outputs",
                f"{path} of {batch.id} is not there any more, or cannot be reached",
                f"its {lines:,} lines are in the store and can be written again",
                commands=again,
            )
        elif count and lines and (found := _lines(path)) is not None and found != lines:
            yield Finding(
                id="queue.outputs",
                level=Level.WARN,
                what=f"{path} has {found:,} lines; vbatch wrote {lines:,} for {batch.id}",
                why="it was changed since; its lines are in the store and can be written again",
                commands=again,
            )


def _lines(path: Path) -> int | None:
    """Count them; None for a file that is not ours to read."""
    try:
        with path.open("rb") as stream:
            return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
    except OSError:
        return None


def _remove(paths: list[Path]) -> str:
    removed = sum(map(_remove_unless_written, paths))
    return "removed" if removed == len(paths) else f"{removed} removed; somebody writes the rest again"


def _remove_unless_written(path: Path) -> bool:
    """Remove a half-written file, unless a writer has begun it anew since it was found: its name is always the same."""
    try:
        with path.open("rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not os.path.samestat(os.fstat(stream.fileno()), path.lstat()):
                return False
            path.unlink()
    except BlockingIOError:
        return False
    except FileNotFoundError:
        pass
    return True


_NEEDS = ("store.reach", "store.state")  # nothing is said of, nor written to, a store that is damaged

CHECKS = (
    Check(name="queue.unfinished", group=Group.QUEUE, run=_unfinished, needs=_NEEDS),
    Check(name="queue.stale", group=Group.QUEUE, run=_stale, needs=_NEEDS),
    Check(name="queue.poisoned", group=Group.QUEUE, run=_poisoned, needs=_NEEDS),
    Check(name="queue.outputs", group=Group.QUEUE, run=_outputs, needs=_NEEDS),
)
