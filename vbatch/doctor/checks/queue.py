"""Checks of the queue: what waits, what dead workers left, and outputs that are missing."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from vbatch import pausing, recovery
from vbatch.batches import blocks
from vbatch.doctor.checks import service
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Check, Entry, Finding, Level, Repair
from vbatch.engine import kinds
from vbatch.outbound.http import shown
from vbatch.pausing import Reason
from vbatch.protocol import BatchStatus
from vbatch.recovery import dead_workers
from vbatch.store import catalog, events, overview
from vbatch.store.records import Batch
from vbatch.system import disks, files
from vbatch.text import harmless

RECENT = 50  # batches whose files are looked for
SHOWN = 5  # unfinished batches that are shown one by one
COUNTED = 5  # newest batches whose files are read, so that their lines can be counted

UNFINISHED = Entry(
    id="queue.unfinished",
    means="batches that are not finished, and how far each is; a running worker continues by itself",
    commands=("vbatch list",),
)
NO_WORKER = Entry(
    id="queue.no_worker",
    means="nothing is lost; the queue waits for a worker whose engine serves its models: the echo engine serves the "
    "model `echo` alone, vLLM every other one",
    commands=("vbatch run-worker",),
    advice="vbatch install-service starts one at every boot",
)
PAUSED = Entry(
    id="queue.paused",
    means="a pause: the workers of this account rest and give the GPU's memory back; batches wait, nothing is lost",
    commands=("vbatch resume",),
)
BLOCKED = Entry(
    id="queue.blocked",
    means="requests wait for a model that a worker could not load; they run when its files, its configuration or its "
    "flags are right, or with another model",
    commands=("vbatch status {batch}", "vbatch retry {batch} -m MODEL"),
)
NOTIFY = Entry(
    id="queue.notify",
    means="a notification of a batch's end could not be delivered; a worker tries again, for three days",
    commands=("vbatch doctor queue -v",),
    advice="names are commands in config.toml: [notify.NAME] command = …; private addresses need notify_private = true",
)
STALE = Entry(
    id="queue.stale",
    means="the requests of dead workers return to the queue when the next worker starts, without waiting for a lease",
    commands=("vbatch doctor queue --fix",),
)
POISONED = Entry(
    id="queue.poisoned",
    means="one of these requests may crash the engine or its worker; vbatch halves the chunk until it is found, that "
    "one ends as an error line (engine_crash), and the others complete",
    commands=("vbatch status {batch}",),
)
OUTPUTS = Entry(
    id="queue.outputs",
    means="a file of a finished batch was moved or changed; its lines are in the store and can be written again",
    commands=("vbatch results {batch} -o {file}",),
)
LEFTOVERS = Entry(
    id="queue.leftovers",
    means="half-written files that no process writes any more take space; the whole files are or will be written",
    commands=("vbatch doctor queue --fix",),
)


def _unfinished(facts: Facts) -> Iterator[Finding]:
    """Report what is in the queue, and which workers run."""
    unfinished = [status for status in BatchStatus if not status.final]
    batches = catalog.recent(facts.records, limit=RECENT, statuses=unfinished)
    if not batches:
        yield UNFINISHED.ok("no batch is unfinished")
        return
    for batch in batches[:SHOWN]:
        yield UNFINISHED.info(_progress(batch), why="", commands=())
    if len(batches) > SHOWN:
        more = f"{len(batches) - SHOWN}{' or more' if len(batches) == RECENT else ''} others"
        yield UNFINISHED.info(f"{more} are not finished either", why="")
    alive = recovery.alive(facts.records)
    engines = [worker.engine for worker in alive] + [facts.settings.engine] * facts.of_service
    unserved = [
        backlog.model
        for backlog in overview.left(facts.records).models
        if backlog.waiting and not any(kinds.may_serve(engine, backlog.model) for engine in engines)
    ]
    commands = _worker_commands(facts, unserved)
    if engines and unserved:
        yield NO_WORKER.warn(f"no worker can serve {_named(unserved)}", commands=commands)
    elif alive:
        workers = "worker is" if len(alive) == 1 else "workers are"
        yield NO_WORKER.ok(f"{len(alive)} {workers} running; what waits continues by itself")
    elif pausing.shown(facts.settings) is not None:
        yield NO_WORKER.ok("no worker is running, nor would one work: they are paused")
    elif facts.of_service:
        yield NO_WORKER.ok("no worker is running yet; the service starts one")
    else:
        yield _without_worker(service.brings_a_worker(), commands)


def _blocked(facts: Facts) -> Iterator[Finding]:
    """Report the models that workers could not load, and what waits for them."""
    found = blocks(facts.records)
    for pk, each in list(found.items())[:SHOWN]:
        batch = catalog.by_pk(facts.records, pk=pk)
        for block in each.models:
            model = harmless(block.model)
            what = f"{model} does not answer at {block.url}" if block.url else f"{model} cannot be loaded"
            yield BLOCKED.fail(
                f"{block.requests:,} requests of {batch.id} wait: {what}",
                evidence=tuple(filter(None, (block.reason, block.hint))),
                values={"batch": batch.id},
            )
    if not found:
        yield BLOCKED.ok("no request waits for a model that cannot be loaded")


def _paused(facts: Facts) -> Iterator[Finding]:
    """Report that workers rest, which is what a person wanted."""
    pause = pausing.shown(facts.settings)
    if pause is None:
        yield PAUSED.ok("workers are not paused")
        return
    commands = () if pause.reason is Reason.HOURS else (pause.remedy,)
    yield PAUSED.info(f"workers are {pause.words}", commands=commands)


def _notifications(facts: Facts) -> Iterator[Finding]:
    """Report notifications that could not be delivered."""
    found = events.in_trouble(facts.records)
    if not found:
        yield NOTIFY.ok("every notification was delivered, or will be soon")
        return
    newest = found[0]
    target = shown(newest.target) if "://" in newest.target else harmless(newest.target)
    yield NOTIFY.warn(
        f"{len(found)} notification{'s' if len(found) > 1 else ''} could not be delivered; the newest, to {target}: "
        f"{harmless(newest.problem or '')}"
    )


def _worker_commands(facts: Facts, models: Sequence[str]) -> tuple[str, ...]:
    """Return the commands that start workers for these models, or any worker where only files are to be written."""
    engine = facts.settings.engine
    commands = dict.fromkeys(kinds.worker_command(model, default=engine) for model in models)
    return tuple(commands) or NO_WORKER.commands


def _named(models: Sequence[str]) -> str:
    shown = ", ".join(harmless(model) for model in models[:SHOWN])
    return shown if len(models) <= SHOWN else f"{shown} and {len(models) - SHOWN} more models"


def _without_worker(unit: Finding | None, commands: tuple[str, ...]) -> Finding:
    if unit is not None and unit.level in (Level.OK, Level.WARN):  # it starts, or is between two tries
        return NO_WORKER.ok("no worker is running yet; the service starts one", unit.what)
    if unit is None:
        return NO_WORKER.info("no worker is running", commands=commands)
    return NO_WORKER.info("no worker is running", commands=unit.commands[-1:])


def _progress(batch: Batch) -> str:
    counts = batch.counts
    saved = counts.completed + counts.failed
    name = f" ({batch.name})" if batch.name else ""
    return f"{batch.id}{name}: {saved:,} of {counts.total:,} requests are saved"


def _stale(facts: Facts) -> Iterator[Finding]:
    """Look for chunks of workers whose processes have provably ended."""
    dead = recovery.dead(facts.records)
    chunks = overview.running(facts.records, workers=[worker.id for worker in dead])
    if not chunks:
        yield STALE.ok("no chunk is leased to a dead worker")
        return
    held = f"{chunks} chunk{'s' if chunks > 1 else ''}"
    lacking = recovery.killed_for_memory(dead)
    ends = {worker: f"; the kernel ended it: {what} ran out of memory" for worker, what in lacking.items()}
    yield STALE.warn(
        f"{held} leased to {len(dead)} worker{'s' if len(dead) > 1 else ''} that crashed",
        evidence=tuple(
            f"{worker.id}: pid {worker.identity.pid} of boot {worker.identity.boot_id}{ends.get(worker.id, '')}"
            for worker in dead
        ),
        repair=Repair(
            question=f"Return {held} to the queue?",
            carry_out=lambda: f"{dead_workers.release_chunks(facts.records)} returned",
        ),
    )


def _poisoned(facts: Facts) -> Iterator[Finding]:
    """Look for chunks that crashed engines or workers."""
    troubled = overview.troubled(facts.records)
    for batch_id, requests, crashes in troubled:
        yield POISONED.warn(
            f"{requests} requests of {batch_id} were running when an engine or a worker crashed, {crashes} times",
            values={"batch": batch_id},
        )
    if not troubled:
        yield POISONED.ok("no request is suspected of crashing engines")


def _outputs(facts: Facts) -> Iterator[Finding]:
    """Compare the files of finished batches with the store, and look for half-written ones."""
    batches = catalog.recent(facts.records, limit=RECENT)
    wrong = [
        finding
        for position, batch in enumerate(_with_files_of_their_own(batches))
        for finding in _mismatches(batch, count=position < COUNTED)
    ]
    yield from wrong
    folders = {Path(path).parent for batch in batches for path in (batch.output_path, batch.error_path)}
    left = [path for folder in sorted(folders) for path in files.abandoned(folder)]
    if left:
        yield LEFTOVERS.warn(
            f"{len(left)} half-written file{'s' if len(left) > 1 else ''} of vbatch, which no process writes any more",
            evidence=tuple(map(str, left)),
            repair=Repair(question="Remove them?", carry_out=lambda: _remove(left)),
        )
    if not wrong and not left:
        yield OUTPUTS.ok("the files of finished batches are where they were written")


def _with_files_of_their_own(batches: Sequence[Batch]) -> list[Batch]:
    """Return those that have ended and whose file names no newer batch was given since."""
    taken: set[str] = set()
    found: list[Batch] = []
    for batch in batches:
        names = {batch.output_path, batch.error_path}
        own = batch.input_file is None  # those of programs are the server's, and may be deleted by themselves
        if own and batch.status.final and not names & taken:
            found.append(batch)
        taken |= names
    return found


def _mismatches(batch: Batch, *, count: bool) -> Iterator[Finding]:
    """Compare a batch's two files with its counts; their lines are counted only where asked for."""
    for path, lines, flag in (
        (Path(batch.output_path), batch.counts.completed, ""),
        (Path(batch.error_path), batch.counts.total - batch.counts.completed, " --errors"),
    ):
        there = disks.exists(path)
        place = path.with_name(f"{path.name}.again") if there else path
        again = (f"vbatch results {batch.id}{flag} -o {shlex.quote(str(place))}",)
        if lines and there and (kind := files.kind_of(path)) is not None:
            what = f"{path} of {batch.id} is not a file any more: {kind} has its name"
            why = f"its {lines:,} lines are in the store and can be written again"
            yield OUTPUTS.warn(what, why=why, commands=again)
        elif lines and not there:
            what = f"{path} of {batch.id} is no longer there, or cannot be reached"
            why = f"its {lines:,} lines are in the store and can be written again"
            yield OUTPUTS.info(what, why=why, commands=again)
        elif count and lines and (found := _lines(path)) is not None and found != lines:
            what = f"{path} has {found:,} lines; vbatch wrote {lines:,} for {batch.id}"
            yield OUTPUTS.warn(what, commands=again)


def _lines(path: Path) -> int | None:
    """Count them; None for a file that may not be read."""
    try:
        with files.open_plain(path) as stream:
            return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b""))
    except OSError:
        return None


def _remove(paths: list[Path]) -> str:
    removed = sum(map(files.remove_unless_locked, paths))
    return "removed" if removed == len(paths) else f"{removed} removed; another process writes the rest again"


_NEEDS = ("store.reach", "store.state")  # the queue of a damaged store is neither reported nor repaired

CHECKS = (
    Check(name="queue.unfinished", finds=(UNFINISHED, NO_WORKER), run=_unfinished, needs=_NEEDS),
    Check(name="queue.paused", finds=(PAUSED,), run=_paused),
    Check(name="queue.blocked", finds=(BLOCKED,), run=_blocked, needs=_NEEDS),
    Check(name="queue.notify", finds=(NOTIFY,), run=_notifications, needs=_NEEDS),
    Check(name="queue.stale", finds=(STALE,), run=_stale, needs=_NEEDS),
    Check(name="queue.poisoned", finds=(POISONED,), run=_poisoned, needs=_NEEDS),
    Check(name="queue.outputs", finds=(OUTPUTS, LEFTOVERS), run=_outputs, needs=_NEEDS),
)
