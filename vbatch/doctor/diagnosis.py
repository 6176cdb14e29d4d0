"""The result of all findings: a verdict, an exit code, and the one next command."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from vbatch.doctor.findings import Finding, Level, exit_code
from vbatch.errors import ExitCode


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The result of an examination. ``story`` reports what happened to the machine, None where nothing did."""

    findings: tuple[Finding, ...]
    story: str | None

    @classmethod
    def of(cls, findings: Sequence[Finding], *, story: str | None) -> Diagnosis:
        """Summarize findings."""
        return cls(findings=tuple(findings), story=story)

    @property
    def exit_code(self) -> ExitCode:
        """What the command ends with."""
        return exit_code(self.findings)

    @property
    def problems(self) -> int:
        """How many findings keep vbatch from working."""
        return self._count(Level.FAIL)

    @property
    def warnings(self) -> int:
        """How many findings a person should know of."""
        return self._count(Level.WARN)

    @property
    def verdict(self) -> str:
        """The result in one line."""
        fixed = self._count(Level.FIXED)
        repaired = f"{_number(fixed, 'problem')} repaired; " if fixed else ""
        if self.problems:
            also = f", {_number(self.warnings, 'warning')}" if self.warnings else ""
            return f"{repaired}{_number(self.problems, 'problem')}{' left' if fixed else ''}{also}"
        if self.warnings:
            return f"{repaired}vbatch can work; {_number(self.warnings, 'warning')}"
        return f"{repaired}all is well"

    @property
    def next_command(self) -> str | None:
        """The one thing to do: the repair where there is one, else the first problem's first command."""
        failed = [finding for finding in self.findings if finding.level is Level.FAIL]
        if any(finding.repair is not None for finding in failed):
            return "vbatch doctor --fix"
        idle = [finding for finding in self.findings if finding.id == "queue.no_worker"]
        for finding in failed or idle:
            if finding.commands and finding.level is not Level.OK:
                return finding.commands[0]
        return None

    def document(self) -> dict[str, Any]:
        """Return it for programs. The names and levels are stable."""
        return {
            "verdict": "problems" if self.problems else "warnings" if self.warnings else "well",
            "exit_code": int(self.exit_code),
            "story": self.story,
            "next": self.next_command,
            "findings": [
                {
                    "id": finding.id,
                    "group": str(finding.group),
                    "level": str(finding.level),
                    "what": finding.what,
                    "why": finding.why,
                    "evidence": list(finding.evidence),
                    "commands": list(finding.commands),
                    "repairable": finding.repair is not None,
                    "passing": finding.passing,
                }
                for finding in self.findings
            ],
        }

    def _count(self, level: Level) -> int:
        return sum(finding.level is level for finding in self.findings)


def _number(count: int, noun: str) -> str:
    return f"{count} {noun}{'' if count == 1 else 's'}"
