"""What a chaos run has done to the requests: each is in one line with its own answer, and nothing is left over."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.rigs.chaos import Chaos, Command, Made
from tests.rigs.commands import Lines
from tests.rigs.filling import rows

REFUSED = "http_400"
EXCUSES = re.compile(
    r"error: .*("
    r"is already (completed|cancelled|expired)|has just ended|is still (in_progress|finalizing|cancelling)"
    r"|another process is writing|was deleted meanwhile|there is no batch|no request of \S+ failed"
    r")"
)


@dataclass
class Verdict:
    """What was found, in words; all empty where the promises were kept."""

    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    wrongly_ended: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)
    odd_commands: list[str] = field(default_factory=list)
    statuses: Counter[str] = field(default_factory=Counter)
    requests: int = 0

    @property
    def faults(self) -> dict[str, list[str]]:
        """The first of each kind."""
        kinds = ("lost", "doubled", "wrong", "wrongly_ended", "left_over", "odd_commands")
        return {kind: found[:5] for kind in kinds if (found := getattr(self, kind))}


def audit(chaos: Chaos) -> Verdict:
    """Look at all that was made, once the queue is drained and what the killed left is removed."""
    verdict = Verdict()
    columns = ("batch", "status", "total", "completed", "failed")
    batches = {path: dict(zip(columns, values, strict=True)) for path, *values in rows(chaos.store, _BATCHES)}
    promised = {str(command.batch.output) for command in chaos.commands if _has_made(command)}
    for path, made in chaos.made.items():
        stored = batches.pop(path, None)
        if stored is not None:
            _check_batch(verdict, made, **stored)
        elif made.deletes:
            _check_deleted(verdict, made)
        elif made.was_seen or path in promised:
            verdict.lost.append(
                f"the batch of {made.output.name}, which was accepted and is not in the store"
            )
        elif made.output.exists() or made.errors.exists():
            verdict.wrong.append(f"{made.output.name} is of a batch that never was")
    verdict.wrong += [f"{path} is of a batch that no command made" for path in batches]
    for command in chaos.commands:
        _check_command(verdict, command)
    verdict.left_over += _left_over(chaos)
    return verdict


_BATCHES = """SELECT output_path, id, status, total, (SELECT sum(completed) FROM chunk WHERE batch = pk),
    (SELECT sum(failed) FROM chunk WHERE batch = pk) FROM batch WHERE status <> 'validating'"""


def _has_made(command: Command) -> bool:
    return command.act in ("submit", "reuse", "retry") and command.code == 0


def _check_batch(
    verdict: Verdict, made: Made, *, batch: str, status: str, total: int, completed: int, failed: int
) -> None:
    name = f"{made.output.name} ({batch}, {status})"
    lines = _lines(made)
    expected = _expected(made)
    verdict.statuses[status] += 1
    verdict.requests += total
    _check_lines(verdict, made, lines, name)
    verdict.lost += [f"{custom_id} of {name}" for custom_id in expected - lines.times_seen.keys()]
    if total != len(expected):
        verdict.lost.append(f"{len(expected) - total} requests at the submit of {name}")
    if (completed, failed) != (len(lines.answers), sum(code == REFUSED for code in _codes(lines).values())):
        verdict.wrong.append(f"{name} counts {completed} and {failed}, its files {len(lines.answers)}")
    codes = set(_codes(lines).values())
    allowed = {
        "completed": {REFUSED},
        "cancelled": {REFUSED, "batch_cancelled"} if made.cancels else None,
        "expired": {REFUSED, "batch_expired"} if made.has_deadline and "batch_expired" in codes else None,
    }.get(status)
    if allowed is None or not codes <= allowed:
        verdict.wrongly_ended.append(f"{name}: {codes}")


def _check_deleted(verdict: Verdict, made: Made) -> None:
    """A batch is deleted when it has ended; one that is deleted by force may have no files."""
    name = f"{made.output.name} (deleted)"
    lines = _lines(made)
    verdict.statuses["deleted"] += 1
    _check_lines(verdict, made, lines, name)
    if not made.forced:
        verdict.requests += len(_expected(made))
        verdict.lost += [f"{custom_id} of {name}" for custom_id in _expected(made) - lines.times_seen.keys()]
    if not set(_codes(lines).values()) <= {REFUSED, "batch_cancelled", "batch_expired"}:
        verdict.wrongly_ended.append(f"{name}: {_codes(lines)}")


def _check_lines(verdict: Verdict, made: Made, lines: Lines, name: str) -> None:
    verdict.doubled += [f"{custom_id} of {name}" for custom_id in lines.doubled]
    verdict.wrong += [f"{custom_id} of {name}" for custom_id in lines.times_seen.keys() - _expected(made)]
    verdict.wrong += [
        f"{custom_id} of {name}: {answer!r} instead of {made.texts.get(custom_id)!r}"
        for custom_id, answer in lines.answers.items()
        if answer != made.texts.get(custom_id)
    ]
    verdict.wrong += [
        f"{custom_id} of {name}: refused"
        for custom_id, code in _codes(lines).items()
        if code == REFUSED and made.texts.get(custom_id) is not None
    ]


def _expected(made: Made) -> set[str]:
    """The requests of a batch: those of a retry are the ones that failed in its batch, which had ended by then."""
    return set(made.texts) if made.retry_of is None else set(_lines(made.retry_of).errors)


def _lines(made: Made) -> Lines:
    return Lines.of({"output_path": str(made.output), "error_path": str(made.errors)})


def _codes(lines: Lines) -> dict[str, str]:
    return {custom_id: _code(line) for custom_id, line in lines.errors.items()}


def _code(line: dict[str, Any]) -> str:
    return f"http_{line['response']['status_code']}" if line["response"] else str(line["error"]["code"])


def _check_command(verdict: Verdict, command: Command) -> None:
    """A command does what it is told, is killed, or says what prevents it: nothing but another command."""
    words = f"{' '.join(command.argv)} exited {command.code}: "
    errors = command.err.read_text() if command.err.exists() else ""
    if command.code not in (0, -9) and not EXCUSES.search(errors):
        verdict.odd_commands.append(words + errors)
    if "Traceback" in errors or "report it" in errors:
        verdict.odd_commands.append(words + errors)
    if command.act == "results -o":
        copy = Path(command.argv[-1])
    elif command.act == "results":
        copy = command.out
    else:
        return
    if command.code != 0 and (command.act == "results" or not copy.exists()):
        return
    lines = Lines.of({"output_path": str(copy), "error_path": None})
    _check_lines(verdict, command.batch, lines, words)
    if len(lines.answers) < command.completed:
        verdict.lost.append(f"{command.completed - len(lines.answers)} saved answers: {words}")


_LEFT = {
    "batches that are not visible": "SELECT count(*) FROM batch WHERE status = 'validating'",
    "unfinished batches": "SELECT count(*) FROM batch WHERE status IN ('in_progress', 'finalizing', 'cancelling')",
    "finalizers": "SELECT count(*) FROM batch WHERE finalizer IS NOT NULL",
    "leases": "SELECT count(*) FROM chunk WHERE state = 'running' OR state = 'ready'",
    "workers and commands": "SELECT count(*) FROM worker WHERE stopped_at IS NULL",
    "engine processes": "SELECT count(*) FROM process",
    "requests of no batch": "SELECT count(*) FROM request WHERE batch NOT IN (SELECT pk FROM batch)",
    "results of no batch": "SELECT count(*) FROM result WHERE batch NOT IN (SELECT pk FROM batch)",
    "chunks of no batch": "SELECT count(*) FROM chunk WHERE batch NOT IN (SELECT pk FROM batch)",
}


def _left_over(chaos: Chaos) -> list[str]:
    found = [f"process {pid}" for pid in chaos.processes()]
    found += [path.name for path in chaos.folder.iterdir() if path.name.endswith(".vbatch-tmp")]
    found += [path.name for path in chaos.folder.iterdir() if ".batch_" in path.name]  # beside another file
    counts = {what: rows(chaos.store, query)[0][0] for what, query in _LEFT.items()}
    return [*found, *(f"{count} {what}" for what, count in counts.items() if count)]
