"""What a check finds: one line what, one line why it matters, the evidence, what mends it, and a repair."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum

from vbatch.errors import ExitCode


class Level(StrEnum):
    """How grave a finding is."""

    OK = "ok"
    INFO = "info"  # worth knowing; nothing is wrong
    SKIP = "skip"  # could not be looked at, or need not be
    WARN = "warn"  # works, but not as well or as safely as it could
    FAIL = "fail"  # the worker cannot work, or promises cannot be kept
    FIXED = "fixed"  # was wrong, and has been repaired just now


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Something that is safe to do because it touches only what is provably ours.

    ``question`` asks a person for leave, without a question mark's worth of doubt about what is done.
    ``carry_out`` does it and returns what was reached, in words; it raises RepairFailed where it was not.
    """

    question: str
    carry_out: Callable[[], str]


class RepairFailed(Exception):
    """A repair did not reach its end; its words say why, its commands what to do instead."""

    def __init__(self, words: str, *commands: str) -> None:
        super().__init__(words)
        self.commands = commands


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a check found.

    ``id`` is stable and documented in ``catalogue``. ``commands`` can be pasted. ``passing`` says that it will
    probably mend itself (a database that starts): ``--wait`` waits for it. ``exit_code`` is what a FAIL ends
    the command with.
    """

    id: str
    level: Level
    what: str
    why: str = ""
    evidence: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    repair: Repair | None = None
    passing: bool = False
    exit_code: ExitCode = ExitCode.FAILED


def ok(finding: str, what: str, *evidence: str) -> Finding:
    """Return a finding that all is well."""
    return Finding(id=finding, level=Level.OK, what=what, evidence=evidence)


def info(finding: str, what: str, why: str = "", *, commands: tuple[str, ...] = ()) -> Finding:
    """Return a finding that is worth knowing."""
    return Finding(id=finding, level=Level.INFO, what=what, why=why, commands=commands)


def skip(finding: str, what: str, why: str = "") -> Finding:
    """Return a finding that something was not looked at."""
    return Finding(id=finding, level=Level.SKIP, what=what, why=why)


def exit_code(findings: Iterable[Finding]) -> ExitCode:
    """Return what the command ends with.

    What a person must mend in the configuration (78) goes before a store to wait for (75), before any other
    blocking problem (1). Warnings do not count.
    """
    codes = {finding.exit_code for finding in findings if finding.level is Level.FAIL}
    for code in (ExitCode.MISCONFIGURED, ExitCode.STORE_UNREACHABLE):
        if code in codes:
            return code
    return ExitCode.FAILED if codes else ExitCode.DONE
