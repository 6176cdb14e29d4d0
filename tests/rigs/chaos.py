"""A random, seeded mistreatment of one store: many commands and some workers at once, and what befalls them.

The dice decide what is done, to which batch, and who is killed when; how it interleaves is up to the machine. What came
of it all is for ``tests.rigs.audit`` to find out.
"""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from typing import Any

from tests.rigs.commands import chat
from tests.rigs.filling import rows
from tests.rigs.freezing import freeze
from tests.rigs.workers import ended, kill, start_command, start_worker
from vbatch.store import Store

WORKERS = 3
LEASE = timedelta(seconds=2)
COMMANDS = 5  # at once
COMMANDS_BESIDE_A_FREEZE = 1  # more leave the other workers no time to take what the frozen one holds
NEWEST = 25  # batches among which a command chooses
ENOUGH = 3000  # open requests at which nothing is submitted for a while
LONGEST_FREEZE = 10  # seconds
FREEZE_TRIES = 15  # to find a moment without a transaction
KILLED = 0.2  # of the commands
SIZES = (1, 7, 120, 300, 700)
WEIGHTS = {
    "submit": 16, "reuse": 8, "retry": 10, "cancel": 8, "delete": 10, "delete --force": 4,
    "results": 8, "results -o": 8, "status": 4, "kill": 6, "kill all": 1, "terminate": 14, "freeze": 20,
}  # fmt: skip


@dataclass
class Made:
    """A batch that a command was to make, known by its output file. ``texts``: None is a request that is refused."""

    output: Path
    texts: dict[str, str | None]  # what each request asks, by custom_id; of a retry, what its batch asked
    retry_of: Made | None = None
    has_deadline: bool = False
    was_seen: bool = False  # in the store
    cancels: int = 0
    deletes: int = 0
    forced: int = 0  # deletes of these with --force

    @property
    def errors(self) -> Path:
        return self.output.with_suffix("").with_name(f"{self.output.stem}.errors.jsonl")


@dataclass
class Command:
    """One command, and what it is about: the batch that it makes, or the one that it is told of."""

    act: str
    argv: Sequence[str]
    process: ForkServerProcess
    out: Path
    err: Path
    batch: Made
    kill_at: float | None
    completed: int = 0  # requests with an answer before it started

    @property
    def code(self) -> int | None:
        return self.process.exitcode


@dataclass
class Chaos:
    """The state of one run."""

    store: Store
    url: str
    folder: Path
    dice: random.Random
    counted: Counter[str] = field(default_factory=Counter)
    made: dict[str, Made] = field(default_factory=dict)  # by output path
    commands: list[Command] = field(default_factory=list)
    _running: list[Command] = field(default_factory=list)
    _workers: list[ForkServerProcess] = field(default_factory=list)
    _names: dict[ForkServerProcess, str] = field(default_factory=dict)  # at the database server
    _frozen: tuple[ForkServerProcess, frozenset[Any], float] | None = None
    _rest_until: float = 0.0  # without any worker

    def run(self, seconds: float) -> None:
        """Mistreat the store for so long, then let the commands end and kill the workers."""
        weights = {
            act: weight for act, weight in WEIGHTS.items() if act != "terminate" or not self.store.file
        }
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self._look_after_all()
            self._act(self.dice.choices([*weights], [*weights.values()])[0])
            time.sleep(self.dice.uniform(0, 0.12))
        while self._running or self._frozen:
            self._look_after_all()
            time.sleep(0.05)
        for worker in self._workers:
            kill(worker)

    def processes(self) -> list[int]:
        """The pids of all that were started and still live."""
        all_ = [*self._workers, *(command.process for command in self.commands)]
        return [process.pid for process in all_ if not ended(process, 0) and process.pid is not None]

    def _act(self, act: str) -> None:
        match act:
            case "kill":
                self._kill_workers(1)
            case "kill all":
                self._kill_workers(WORKERS)
                self._rest_until = time.monotonic() + self.dice.uniform(0, 3)
            case "terminate":
                self._terminate()
            case "freeze":
                self._freeze()
            case _ if len(self._running) >= (COMMANDS if self._frozen is None else COMMANDS_BESIDE_A_FREEZE):
                return
            case "submit" | "reuse" | "retry" if self._open() > ENOUGH:
                return
            case "submit":
                self._submit()
            case _:
                self._command_on_a_batch(act)

    def _submit(self, like: tuple[str, Made] | None = None) -> None:
        """Submit a file; one that is ``like`` that of another batch has new texts for some of its requests."""
        dice, number = self.dice, len(self.commands)
        made = Made(self.folder / f"{number}.output.jsonl", {}, has_deadline=dice.random() < 0.2)
        lines = []
        texts: dict[str, str | None] = (
            dict.fromkeys((f"r-{n}" for n in range(dice.choice(SIZES))), "")
            if like is None
            else like[1].texts
        )
        for custom_id, known in texts.items():
            refused = known is None or (like is None and dice.random() < 0.03)
            again = bool(known) and dice.random() < 0.7
            text = known if again and known else f"{custom_id} of {number}"
            made.texts[custom_id] = None if refused else text
            lines.append(chat(custom_id, text, echo="error400" if refused else None))
        source = self.folder / f"{number}.jsonl"
        _write_lines(source, lines)
        argv = ["submit", str(source), "-q", "-o", str(made.output), "--priority", str(dice.randrange(3))]
        if made.has_deadline:
            argv += ["--expires-in", f"{dice.randint(1, 4)}s"]
        if like is not None:
            argv += ["--reuse", like[0]]
        self._start("submit" if like is None else "reuse", argv, made)

    def _command_on_a_batch(self, act: str) -> None:
        found = rows(
            self.store,
            "SELECT id, output_path, (SELECT coalesce(sum(completed), 0) FROM chunk WHERE chunk.batch = batch.pk),"
            f" status FROM batch WHERE status <> 'validating' ORDER BY pk DESC LIMIT {NEWEST}",
        )
        for _, output, _, _ in found:
            self.made[output].was_seen = True
        working = [row for row in found if row[3] == "in_progress"]
        if act in ("cancel", "delete --force") and working:
            found = working
        if not found:
            return
        reference, output, completed, _ = self.dice.choice(found)
        target = self.made[output]
        copy = str(self.folder / f"{len(self.commands)}.copy.jsonl")
        match act:
            case "reuse":
                self._submit((reference, _asked(target)))
            case "retry":
                made = Made(self.folder / f"{len(self.commands)}.output.jsonl", target.texts, retry_of=target)
                self._start("retry", ["retry", reference, "-q", "-o", str(made.output)], made)
            case "results -o":
                self._start(act, ["results", reference, "-o", copy], target, completed=int(completed))
            case "results":
                self._start(act, ["results", reference], target, completed=int(completed))
            case "cancel":
                target.cancels += 1
                self._start(act, ["cancel", reference], target)
            case "delete" | "delete --force":
                target.deletes += 1
                target.forced += act != "delete"
                self._start(act, [*act.split(), reference], target)
            case _:
                self._start(act, [act, reference, "--json"], target)

    def _start(self, act: str, argv: Sequence[str], batch: Made, *, completed: int = 0) -> None:
        number = len(self.commands)
        out, err = self.folder / f"{number}.stdout", self.folder / f"{number}.stderr"
        environment = {
            "HOME": str(self.folder),
            "VBATCH_DATABASE_URL": self.url,
            "VBATCH_STATE_DIR": str(self.folder),
            "VBATCH_CACHE_DIR": str(self.folder),
            "VBATCH_CONFIG": os.devnull,
        }
        self.made.setdefault(str(batch.output), batch)
        process = start_command(argv, environment, out=out, errors=err)
        doomed = self.dice.random() < KILLED
        kill_at = time.monotonic() + self.dice.uniform(0, 0.6) if doomed else None
        command = Command(act, argv, process, out, err, batch, kill_at, completed)
        self.commands.append(command)
        self._running.append(command)
        self.counted[act] += 1

    def _look_after_all(self) -> None:
        now = time.monotonic()
        for command in self._running:
            if command.kill_at is not None and now >= command.kill_at and not ended(command.process, 0):
                kill(command.process)
                self.counted["commands killed"] += 1
        self._running = [command for command in self._running if not ended(command.process, 0)]
        if self._frozen is not None and self._is_due(*self._frozen):
            self._thaw()
        self._workers = [worker for worker in self._workers if not ended(worker, 0)]
        while len(self._workers) < WORKERS and now >= self._rest_until:
            latency = self.dice.choice([50, 200, 300])
            name = f"vbatch-{len(self._names)}"
            url = self.url if self.store.file else f"{self.url}&application_name={name}"
            worker = start_worker(url, self.folder, lease=LEASE, echo_latency_ms=latency, max_inflight=64)
            self._names[worker] = name
            self._workers.append(worker)

    def _kill_workers(self, count: int) -> None:
        if self._frozen is not None:  # the others are to take what it holds
            return
        for victim in self.dice.sample(self._workers, min(count, len(self._workers))):
            kill(victim)
            self.counted["workers killed"] += 1

    def _terminate(self) -> None:
        backends = rows(
            self.store,
            "SELECT pid FROM pg_stat_activity WHERE application_name LIKE 'vbatch%' AND pid <> pg_backend_pid()"
            " AND datname = current_database() ORDER BY pid",
        )
        if backends:
            rows(self.store, f"SELECT pg_terminate_backend({self.dice.choice(backends)[0]})")
            self.counted["backends terminated"] += 1

    def _freeze(self) -> None:
        """Freeze a worker that holds chunks, until another one has a chunk of its; a freeze at a time."""
        holders = {pid for pid, _ in self._held()}
        able = [worker for worker in self._workers if worker.pid in holders]
        if self._frozen is not None or not able:
            return
        victim = self.dice.choice(able)
        assert victim.pid is not None
        if not freeze(victim.pid, self.store, application=self._names[victim], tries=FREEZE_TRIES):
            return
        mine = frozenset(chunk for pid, chunk in self._held() if pid == victim.pid)
        self._frozen = victim, mine, time.monotonic()
        self.counted["workers frozen"] += 1

    def _is_due(self, victim: ForkServerProcess, mine: frozenset[Any], since: float) -> bool:
        if time.monotonic() - since > LONGEST_FREEZE:
            return True
        if any(pid != victim.pid and chunk in mine for pid, chunk in self._held()):
            self.counted["thawed while another worker had its chunk"] += 1
            return True
        return False

    def _thaw(self) -> None:
        assert self._frozen is not None
        pid = self._frozen[0].pid
        assert pid is not None
        os.kill(pid, signal.SIGCONT)
        self._frozen = None

    def _held(self) -> list[tuple[int, tuple[int, int]]]:
        found = rows(
            self.store,
            "SELECT worker.pid, chunk.batch, chunk.number FROM chunk JOIN worker ON worker.id = chunk.worker"
            " WHERE chunk.state = 'running'",
        )
        return [(pid, (batch, number)) for pid, batch, number in found]

    def _open(self) -> int:
        query = "SELECT coalesce(sum(total - completed - failed), 0) FROM chunk WHERE state IN ('ready', 'running')"
        return int(rows(self.store, query)[0][0])


def _asked(batch: Made) -> Made:
    return batch if batch.retry_of is None else _asked(batch.retry_of)


def _write_lines(path: Path, lines: Sequence[dict[str, object]]) -> None:
    """Write an input file."""
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
