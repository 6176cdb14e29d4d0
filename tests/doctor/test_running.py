"""How checks are run: in order, guarded, waited for, repaired where asked. The checks here are made for that."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from datetime import timedelta
from typing import Any

import pytest

from vbatch import config
from vbatch.doctor.facts import Facts, NothingStored
from vbatch.doctor.findings import Check, Entry, Finding, Level, Repair, RepairFailed, exit_code
from vbatch.doctor.running import Conduct, examine
from vbatch.errors import ExitCode


@pytest.fixture
def facts() -> Facts:
    return Facts(settings=config.load())


def check(name: str, run: Callable[[Facts], Iterable[Finding]], **fields: Any) -> Check:
    return Check(name=name, finds=(entry(name),), run=run, **fields)


def fails(finding: str = "store.starting", **fields: Any) -> Finding:
    return entry(finding).fail("it is unreachable", **fields)


def ok(finding: str, what: str) -> Finding:
    return entry(finding).ok(what)


def entry(finding: str) -> Entry:
    return Entry(id=finding, means="it means this")


def test_what_follows_from_a_failed_check_is_skipped(facts: Facts) -> None:
    """Mutant: not adding skipped checks to the failed ones; the third would be asked."""
    asked: list[str] = []

    def never(_facts: Facts) -> Iterable[Finding]:
        asked.append("asked")
        return [ok("queue.stale", "fine")]

    found = examine(
        [
            check("store.reach", lambda _: [fails()], provides="the store"),
            check("queue.stale", never, needs=("store.reach",)),
            check("queue.outputs", never, needs=("queue.stale",)),
        ],
        facts,
        Conduct(),
    ).findings
    assert [finding.level for finding in found] == [Level.FAIL, Level.SKIP, Level.SKIP]
    assert found[1].what == "skipped: needs the store"
    assert asked == []


def test_a_check_that_hangs_is_left_behind(facts: Facts) -> None:
    """Mutant: calling the check without a thread."""
    release = threading.Event()
    ended: list[bool] = []

    def hang(_facts: Facts) -> Iterable[Finding]:
        ended.append(release.wait(60))
        return []

    (found,) = examine([check("gpu.driver", hang, limit=timedelta(seconds=0.2))], facts, Conduct()).findings
    assert not ended
    release.set()
    assert (found.id, found.level) == ("gpu.hanging", Level.FAIL)
    assert "gpu.driver" in found.what


def test_a_check_that_crashes_stops_no_other(facts: Facts) -> None:
    """Mutant: no guard around the check."""

    def crash(_facts: Facts) -> Iterable[Finding]:
        raise ZeroDivisionError("by zero")

    found = examine(
        [check("gpu.driver", crash), check("gpu.memory", lambda _: [ok("gpu.memory", "fine")])],
        facts,
        Conduct(),
    ).findings
    assert [finding.id for finding in found] == ["gpu.crashed", "gpu.memory"]
    assert found[0].level is Level.WARN
    assert "by zero" in found[0].what


def test_what_was_found_before_a_crash_is_reported(facts: Facts) -> None:
    """Mutant: the crash alone; it is a warning, and a disk that is read-only would end with 0."""

    def crash(_facts: Facts) -> Iterable[Finding]:
        yield fails()
        raise ZeroDivisionError

    found = examine([check("host.disk", crash)], facts, Conduct()).findings
    assert [finding.level for finding in found] == [Level.FAIL, Level.WARN]


def test_what_needs_a_check_that_crashed_is_skipped(facts: Facts) -> None:
    """Mutant: taking what could not be checked for well."""

    def crash(_facts: Facts) -> Iterable[Finding]:
        raise ZeroDivisionError

    found = examine(
        [check("store.state", crash), check("queue.stale", lambda _: [fails()], needs=("store.state",))],
        facts,
        Conduct(),
    ).findings
    assert [finding.level for finding in found] == [Level.FAIL, Level.SKIP]


def test_without_a_store_there_is_nothing_to_say(facts: Facts) -> None:
    def look(_facts: Facts) -> Iterable[Finding]:
        raise NothingStored

    (found,) = examine([check("queue.stale", look)], facts, Conduct()).findings
    assert found.level is Level.SKIP


def test_what_passes_is_waited_for(facts: Facts) -> None:
    """Mutant: no second look."""
    states = iter([[fails(passing=True)], [fails(passing=True)], [ok("store.reach", "it answers")]])
    told: list[str] = []
    examination = examine(
        [check("store.reach", lambda _: next(states))],
        facts,
        Conduct(patience=timedelta(seconds=30), waiting=lambda finding, _seconds: told.append(finding.what)),
    )
    assert [finding.level for finding in examination.findings] == [Level.OK]
    assert told == ["it is unreachable"] * 2


def test_what_does_not_pass_is_not_waited_for(facts: Facts) -> None:
    """Mutant: waiting for any failure. A wrong password must not cost a minute."""
    found = [fails("store.password", exit_code=ExitCode.MISCONFIGURED), fails(passing=True)]
    told: list[str] = []
    examination = examine(
        [check("store.reach", lambda _: found)],
        facts,
        Conduct(patience=timedelta(seconds=1), waiting=lambda finding, _seconds: told.append(finding.what)),
    )
    assert told == []
    assert exit_code(examination.findings) is ExitCode.MISCONFIGURED


def test_patience_ends(facts: Facts) -> None:
    looks: list[float] = []

    def away(_facts: Facts) -> Iterable[Finding]:
        looks.append(time.monotonic())
        return [fails(passing=True, exit_code=ExitCode.STORE_UNREACHABLE)]

    examination = examine([check("store.reach", away)], facts, Conduct(patience=timedelta(seconds=0.5)))
    assert len(looks) == 2
    assert exit_code(examination.findings) is ExitCode.STORE_UNREACHABLE


@pytest.mark.parametrize("allowed", [True, False])
def test_a_repair_is_carried_out_only_with_leave(facts: Facts, *, allowed: bool) -> None:
    """Mutant: repairing without asking ``may_repair``."""
    done: list[str] = []

    def carry_out() -> str:
        done.append("done")
        return "13.9 GiB came back"

    broken = fails("gpu.orphan", repair=Repair(question="End it?", carry_out=carry_out))
    (found,) = examine(
        [check("gpu.holders", lambda _: [broken])], facts, Conduct(may_repair=lambda _finding: allowed)
    ).findings
    assert done == (["done"] if allowed else [])
    assert found.level is (Level.FIXED if allowed else Level.FAIL)
    assert ("13.9 GiB came back" in found.what) is allowed


def test_a_repair_that_fails_leaves_the_finding(facts: Facts) -> None:
    def carry_out() -> str:
        raise RepairFailed("it does not die")

    broken = fails("gpu.orphan", repair=Repair(question="End it?", carry_out=carry_out))
    (found,) = examine(
        [check("gpu.holders", lambda _: [broken])], facts, Conduct(may_repair=lambda _finding: True)
    ).findings
    assert found.level is Level.FAIL
    assert "it does not die" in found.why


def test_a_repaired_check_lets_the_next_look_anew(facts: Facts) -> None:
    """Mutant: no ``look_again`` after a repair: memory would be judged by the figures from before."""
    facts.__dict__["gpu"] = "from before"
    broken = fails("gpu.orphan", repair=Repair(question="End it?", carry_out=lambda: "ended"))
    examine([check("gpu.holders", lambda _: [broken])], facts, Conduct(may_repair=lambda _finding: True))
    assert "gpu" not in facts.__dict__


def test_what_a_person_must_fix_ends_all_waiting(facts: Facts) -> None:
    """Mutant: the deadline kept: a bad URL would be reported after a minute of waiting for the driver."""
    told: list[str] = []
    examination = examine(
        [
            check("store.reach", lambda _: [fails("store.url", exit_code=ExitCode.MISCONFIGURED)]),
            check("gpu.driver", lambda _: [fails("gpu.not_loaded", passing=True)]),
        ],
        facts,
        Conduct(patience=timedelta(seconds=1), waiting=lambda finding, _seconds: told.append(finding.what)),
    )
    assert told == []
    assert exit_code(examination.findings) is ExitCode.MISCONFIGURED


def test_what_must_be_fixed_goes_before_what_passes() -> None:
    """Mutant: 75 before 78; systemd would start the worker again and again."""
    both = [
        fails(passing=True, exit_code=ExitCode.STORE_UNREACHABLE),
        fails("store.url", exit_code=ExitCode.MISCONFIGURED),
    ]
    assert exit_code(both) is exit_code(both[::-1]) is ExitCode.MISCONFIGURED
    assert exit_code([fails(), both[0]]) is ExitCode.STORE_UNREACHABLE
