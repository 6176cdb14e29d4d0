"""What a check is, what it can find, and what it found.

The words about a finding stand once, in its ``Entry`` beside the check; a finding is made by its entry alone and adds
what was seen.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from string import Formatter
from typing import TYPE_CHECKING, TypedDict, Unpack

from vbatch.errors import ExitCode

if TYPE_CHECKING:
    from vbatch.doctor.facts import Facts


class Group(StrEnum):
    """What a check is about, in causal order."""

    HOST = "host"
    STORE = "store"
    QUEUE = "queue"
    GPU = "gpu"
    ENGINE = "engine"
    ENDPOINT = "endpoint"
    MODELS = "models"
    SERVICE = "service"
    SERVER = "server"
    NEIGHBOURS = "neighbours"


class Level(StrEnum):
    """How serious a finding is."""

    OK = "ok"
    INFO = "info"  # worth knowing; nothing is wrong
    SKIP = "skip"  # could not be checked, or need not be
    WARN = "warn"  # works, but not as well or as safely as it could
    FAIL = "fail"  # the worker cannot work, or promises cannot be kept
    FIXED = "fixed"  # was wrong, and has just been repaired


@dataclass(frozen=True, slots=True, kw_only=True)
class Repair:
    """Something that is safe to do because it touches only what vbatch provably started or wrote.

    ``question`` names exactly what will be done. ``carry_out`` does it and returns the result in words; it raises
    RepairFailed where it could not.
    """

    question: str
    carry_out: Callable[[], str]


class RepairFailed(Exception):
    """A repair was not completed: its message says why, its commands what to do instead."""

    def __init__(self, message: str, *commands: str) -> None:
        super().__init__(message)
        self.commands = commands


class Particulars(TypedDict, total=False):
    """What a finding may add to its entry.

    ``why`` and ``commands`` replace those of the entry; ``values`` fill the blanks of the entry's commands. ``passing``
    says that it will probably pass without a person (a database that starts): ``--wait`` waits for it. ``exit_code`` is
    what a FAIL ends the command with.
    """

    why: str
    evidence: tuple[str, ...]
    commands: tuple[str, ...]
    values: Mapping[str, object]
    repair: Repair | None
    passing: bool
    exit_code: ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """All that doctor says about one finding, on the screen as in the table of findings.

    ``id`` is stable. ``means`` is what it means and why it matters, as one phrase. ``commands`` can be pasted once
    their blanks (``{path}``) are filled; ``advice`` is what no command does.
    """

    id: str
    means: str
    commands: tuple[str, ...] = ()
    advice: str = ""

    @property
    def remedy(self) -> str:
        """What a person can do about it, in one line."""
        blanks = {name for command in self.commands for _, name, _, _ in Formatter().parse(command) if name}
        shown = {name: name.upper() for name in blanks}
        commands = (command.format(**shown) for command in self.commands)
        return "; ".join(filter(None, [*commands, self.advice])) or "nothing to do"

    def ok(self, what: str, *evidence: str) -> Finding:
        """Report that all is well."""
        return Finding(entry=self, level=Level.OK, what=what, evidence=evidence)

    def skip(self, what: str) -> Finding:
        """Report that something was not checked."""
        return Finding(entry=self, level=Level.SKIP, what=what)

    def info(self, what: str, **particulars: Unpack[Particulars]) -> Finding:
        """Report what is worth knowing."""
        return self.found(Level.INFO, what, **particulars)

    def warn(self, what: str, **particulars: Unpack[Particulars]) -> Finding:
        """Report what works, but not as it should."""
        return self.found(Level.WARN, what, **particulars)

    def fail(self, what: str, **particulars: Unpack[Particulars]) -> Finding:
        """Report what keeps vbatch from working or from keeping its promises."""
        return self.found(Level.FAIL, what, **particulars)

    def found(self, level: Level, what: str, **particulars: Unpack[Particulars]) -> Finding:
        """Report it at this level."""
        quoted = {name: shlex.quote(str(value)) for name, value in particulars.get("values", {}).items()}
        commands = particulars.get("commands")
        return Finding(
            entry=self,
            level=level,
            what=what,
            why=particulars.get("why", self.means),
            evidence=particulars.get("evidence", ()),
            commands=tuple(each.format(**quoted) for each in self.commands) if commands is None else commands,
            repair=particulars.get("repair"),
            passing=particulars.get("passing", False),
            exit_code=particulars.get("exit_code", ExitCode.FAILED),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that a check found: what was seen, and what of its entry applies to that."""

    entry: Entry
    level: Level
    what: str
    why: str = ""
    evidence: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    repair: Repair | None = None
    passing: bool = False
    exit_code: ExitCode = ExitCode.FAILED

    @property
    def id(self) -> str:
        """The stable name, such as ``gpu.orphan``."""
        return self.entry.id

    @property
    def group(self) -> Group:
        """What it is about."""
        return Group(self.id.partition(".")[0])


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check. ``finds`` are the entries of all that it can find; where it is skipped, the first one is shown.

    ``needs`` are the names of checks that must not fail before this one; ``after`` are those that also run before
    it, whatever they find. ``provides`` completes "skipped: needs …" for the checks that need this one. ``by_name``:
    it answers a question, and runs only where it is named.
    """

    name: str
    finds: tuple[Entry, ...]
    run: Callable[[Facts], Iterable[Finding]]
    provides: str = ""
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    limit: timedelta = timedelta(seconds=20)
    by_name: bool = False

    @property
    def group(self) -> Group:
        """What it is about."""
        return Group(self.name.partition(".")[0])


def exit_code(findings: Iterable[Finding]) -> ExitCode:
    """Return what the command ends with.

    A configuration that a person must fix (78) goes before a store to wait for (75), and that before any other
    blocking problem (1). Warnings do not count.
    """
    codes = {finding.exit_code for finding in findings if finding.level is Level.FAIL}
    for code in (ExitCode.MISCONFIGURED, ExitCode.STORE_UNREACHABLE):
        if code in codes:
            return code
    return ExitCode.FAILED if codes else ExitCode.DONE
