"""Run checks in causal order: each with a time limit and a crash guard, repaired if asked, waited for if it may pass.

What follows from a failed check is skipped, so that one cause is one finding.
"""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import timedelta

from vbatch.doctor.facts import Facts, NothingStored, OtherTables
from vbatch.doctor.findings import Check, Entry, Finding, Group, Level, RepairFailed
from vbatch.errors import ExitCode, VbatchError
from vbatch.text import one_line

log = logging.getLogger(__name__)

POLL = timedelta(seconds=2)  # between two runs of a check that waits

# Of every group, under its name: host.crashed, store.hanging …
CRASHED = Entry(
    id="GROUP.crashed",
    means="the check met something that it does not know; the other checks are not affected",
    commands=("vbatch doctor {group} -v --report doctor-report.txt",),
    advice="report it",
)
HANGING = Entry(
    id="GROUP.hanging",
    means="something below the check hangs: a disk, a network file system, a driver",
    commands=("sudo dmesg | tail",),
    advice="if a driver hangs, reboot",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Conduct:
    """How a run behaves. ``may_repair`` decides about each repair; ``waiting`` is called with what is waited for."""

    patience: timedelta = timedelta()
    may_repair: Callable[[Finding], bool] = lambda _finding: False
    waiting: Callable[[Finding, float], None] = lambda _finding, _seconds: None
    found: Callable[[Sequence[Finding]], None] = lambda _findings: None


@dataclass(slots=True)
class Examination:
    """All that was found, in order."""

    findings: list[Finding] = field(default_factory=list)
    failed_checks: set[str] = field(default_factory=set)


def examine(checks: Sequence[Check], facts: Facts, conduct: Conduct) -> Examination:
    """Run the checks one after another. Never raises for what a check meets."""
    examination = Examination()
    deadline = time.monotonic() + conduct.patience.total_seconds()
    provides = {check.name: check.provides or check.name for check in checks}
    for check in checks:
        missing = [name for name in check.needs if name in examination.failed_checks]
        if missing:
            findings = [check.finds[0].skip(f"skipped: needs {provides[missing[0]]}")]
        else:
            findings = _patiently(check, facts, conduct, deadline)
            findings = [_repaired(finding, facts, conduct) for finding in findings]
        if missing or any(finding.level is Level.FAIL or _is_crash(finding) for finding in findings):
            examination.failed_checks.add(check.name)
        if any(finding.exit_code is ExitCode.MISCONFIGURED for finding in findings):
            deadline = time.monotonic()  # a person must fix that: waiting for anything else would not help
        examination.findings += findings
        conduct.found(findings)
    return examination


def _patiently(check: Check, facts: Facts, conduct: Conduct, deadline: float) -> list[Finding]:
    """Run a check repeatedly while everything that it finds wrong will probably pass."""
    started = time.monotonic()
    while True:
        findings = _guarded(check, facts)
        blocking = [finding for finding in findings if finding.level is Level.FAIL]
        passes = bool(blocking) and all(finding.passing for finding in blocking)
        if not passes or time.monotonic() >= deadline:
            return findings
        conduct.waiting(blocking[0], time.monotonic() - started)
        time.sleep(max(0.0, min(POLL.total_seconds(), deadline - time.monotonic())))
        facts.look_again()


def _guarded(check: Check, facts: Facts) -> list[Finding]:
    """Run a check in a thread of its own: one that hangs in a system call is left behind."""
    findings: list[Finding] = []
    crashes: list[Exception] = []

    def run() -> None:
        try:
            findings.extend(check.run(facts))
        except Exception as error:
            crashes.append(error)

    thread = threading.Thread(target=run, name=f"doctor-{check.name}", daemon=True)
    thread.start()
    thread.join(check.limit.total_seconds())
    if thread.is_alive():
        of_store = check.group is Group.STORE
        hanging = replace(HANGING, id=f"{check.group}.hanging").found(
            Level.WARN if check.group is Group.NEIGHBOURS else Level.FAIL,
            f"{check.name} gave no answer within {check.limit.total_seconds():g} s",
            passing=True,
            exit_code=ExitCode.STORE_UNREACHABLE if of_store else ExitCode.FAILED,
        )
        return [*findings, hanging]
    if crashes and isinstance(crashes[0], NothingStored):
        other = isinstance(crashes[0], OtherTables)
        reason = "the tables are of another version" if other else "nothing is stored yet"
        return [check.finds[0].skip(f"skipped: {reason}")]
    if crashes:
        return [*findings, _crashed(check, crashes[0])]
    return list(findings)


def _crashed(check: Check, error: Exception) -> Finding:
    log.debug("doctor.check_crashed check=%s", check.name, exc_info=error)
    words = error.message if isinstance(error, VbatchError) else f"{type(error).__name__}: {error}"
    return replace(
        CRASHED, id=f"{check.group}.crashed"
    ).found(
        Level.FAIL if check.group is Group.STORE else Level.WARN,  # without a store nothing works
        f"{check.name} could not be checked: {one_line(words, limit=160)}",
        evidence=tuple(traceback.format_exception(error)[-3:]),
        values={"group": check.group},
    )


def _is_crash(finding: Finding) -> bool:
    """Whether the check crashed: what it would have found is unknown, so what needs it is skipped."""
    return finding.id.endswith(".crashed")


def _repaired(finding: Finding, facts: Facts, conduct: Conduct) -> Finding:
    """Repair what may be repaired, and report the result."""
    if finding.repair is None or not conduct.may_repair(finding):
        return finding
    try:
        result = finding.repair.carry_out()
    except RepairFailed as error:
        return replace(finding, why=f"the repair failed: {error}", commands=error.commands, repair=None)
    except (VbatchError, OSError) as error:
        hint = error.hint if isinstance(error, VbatchError) else None
        commands = (hint,) if hint else ()
        return replace(finding, why=f"the repair failed: {error}", commands=commands, repair=None)
    facts.look_again()
    return replace(finding, level=Level.FIXED, what=f"{finding.what}: {result}", repair=None, commands=())
