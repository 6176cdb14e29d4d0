"""``doctor``: one calm screen, one line per check; details only where something is wrong; the next command last."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TextIO

from rich.table import Table
from rich.text import Text

from vbatch import __version__
from vbatch.cli.output import Mode, Output
from vbatch.cli.startup import settings as load_settings
from vbatch.config import Settings
from vbatch.doctor import registry, report, story
from vbatch.doctor.diagnosis import Diagnosis
from vbatch.doctor.facts import Facts, NothingStored
from vbatch.doctor.findings import Finding, Group, Level
from vbatch.doctor.running import Conduct, examine
from vbatch.errors import ExitCode, OutputPathError, UsageError, VbatchError
from vbatch.text import harmless, parse_duration

_MARKS = {
    Level.OK: ("✓", "+", "green"),
    Level.FIXED: ("✓", "+", "bold green"),
    Level.INFO: ("·", ".", "cyan"),
    Level.SKIP: ("-", "-", "dim"),
    Level.WARN: ("!", "!", "yellow"),
    Level.FAIL: ("✗", "x", "bold red"),
}
_TITLES = {
    Group.HOST: "This machine",
    Group.STORE: "Store",
    Group.QUEUE: "Queue",
    Group.GPU: "GPU",
    Group.ENGINE: "Engine",
    Group.ENDPOINT: "Endpoints",
    Group.MODELS: "Models",
    Group.SERVICE: "Service",
    Group.SERVER: "Server",
    Group.NEIGHBOURS: "Neighbours",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """What the command line asks for."""

    names: Sequence[str] = ()
    fix: bool = False
    yes: bool = False
    wait: str | None = None
    min_free_gb: float | None = None
    force_clear: bool = False
    report: Path | None = None
    fresh: bool = False
    verbose: bool = False
    json: bool = False


def list_findings(*, json: bool) -> int:
    """Show what every finding means and what to do about it."""
    output = Output.of(json=json)
    entries = registry.meanings().values()
    if json:
        output.document([{"id": each.id, "means": each.means, "remedy": each.remedy} for each in entries])
        return ExitCode.DONE
    table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True, style="bold")
    for each in entries:
        table.add_row(each.id, Text(each.means))
        if each.remedy:
            table.add_row("", Text(each.remedy, style="cyan"))
    output.print(table)
    return ExitCode.DONE


def doctor(request: Request) -> int:
    """Examine, repair what may be repaired, report what happened, and return the exit code."""
    output = Output.of(json=request.json)
    if request.report is not None and os.path.lexists(request.report):
        raise OutputPathError(
            f"{request.report} already exists, and vbatch overwrites no file", hint="--report another path"
        )
    checks = registry.chosen(request.names)
    patience = _patience(request.wait)
    settings = load_settings(output)
    facts = Facts(
        settings=settings,
        min_free_gb=request.min_free_gb,
        fresh=request.fresh,
        only_looks=not (request.fix or request.force_clear),
    )
    screen = _Screen(output, verbose=request.verbose)
    asking = _Asking(output, request)
    try:
        examination = examine(
            checks,
            facts,
            Conduct(
                patience=patience,
                may_repair=asking.may_repair,
                waiting=lambda finding, seconds: output.transient(
                    f"waiting: {finding.what} ({seconds:.0f} s)"
                ),
                found=screen.show,
            ),
        )
        diagnosis = Diagnosis.of(examination.findings, story=_story(facts, examination.findings))
    finally:
        facts.close()
    if output.mode is Mode.JSON:
        output.document({"vbatch": __version__, **diagnosis.document()})
    else:
        screen.end(diagnosis, refused=asking.refused)
    return diagnosis.exit_code if _reported(request.report, diagnosis, settings, output) else ExitCode.FAILED


def _reported(path: Path | None, diagnosis: Diagnosis, settings: Settings, output: Output) -> bool:
    """Write the report, last of all: if that fails, the verdict has been shown."""
    if path is None:
        return True
    try:
        report.write(path, diagnosis, settings)
    except OSError as error:
        output.warn(f"the report cannot be written to {path}: {error.strerror}")
        return diagnosis.exit_code is not ExitCode.DONE
    output.note(f"the report is in {path}: read it before you pass it on")
    return True


def _patience(text: str | None) -> timedelta:
    if text is None:
        return timedelta()
    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"--wait: {error}") from None


def _story(facts: Facts, findings: Sequence[Finding]) -> str | None:
    """Return what happened to the machine, where the store could be read."""
    if not any(finding.id == "host.shutdown" and finding.level is not Level.SKIP for finding in findings):
        return None
    try:
        found = story.of(facts)
    except (VbatchError, NothingStored):
        return None
    return found.words if found is not None else None


class _Asking:
    """Decides about repairs: asks on a terminal, takes --yes for an answer, and changes nothing otherwise."""

    def __init__(self, output: Output, request: Request) -> None:
        self._output = output
        self._request = request
        self.refused = False

    def may_repair(self, finding: Finding) -> bool:
        """Decide whether this repair may be carried out."""
        request = self._request
        if request.force_clear and finding.id == "gpu.orphan":
            return True
        if not request.fix:
            return False
        if request.yes:
            return True
        if sys.stdin is None or not (sys.stdin.isatty() and sys.stderr.isatty()):
            self.refused = True
            return False
        assert finding.repair is not None
        self._output.clear()
        sys.stderr.write(f"{harmless(finding.what)}\n{harmless(finding.repair.question)} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in ("y", "yes")


def _is_ascii(stream: TextIO) -> bool:
    """Whether this locale has ASCII only; Python itself writes UTF-8 even then (PEP 538, 540)."""
    encoding = (getattr(stream, "encoding", None) or "ascii").lower().replace("-", "")
    chosen = (os.environ.get(name) for name in ("LC_ALL", "LC_CTYPE", "LANG"))
    locale = next(filter(None, chosen), "")
    coerced = locale.startswith("C.") and not os.environ.get("LC_ALL") and os.environ.get("LANG") in _PLAIN
    return not encoding.startswith("utf") or locale in _PLAIN or coerced


_PLAIN = ("C", "POSIX")


class _Screen:
    """Prints each check's findings as they come, under the heading of their group."""

    def __init__(self, output: Output, *, verbose: bool) -> None:
        self._output = output
        self._verbose = verbose
        self._group: Group | None = None
        self._skipped: set[tuple[Group, str]] = set()
        self._ascii = _is_ascii(sys.stdout)

    def show(self, findings: Sequence[Finding]) -> None:
        """Print what a check found."""
        if self._output.mode is Mode.JSON:
            return
        self._output.clear()
        for finding in findings:
            if finding.level is Level.SKIP and not self._verbose and self._seen_already(finding):
                continue
            group = finding.group
            if group is not self._group:
                title = _TITLES[group]
                self._output.print(Text(title if self._group is None else f"\n{title}", style="bold"))
                self._group = group
            for line in self._lines(finding):
                self._output.stdout.print(line, soft_wrap=True)
        sys.stdout.flush()

    def _seen_already(self, finding: Finding) -> bool:
        """Whether another check of this group was skipped for the same reason, which is shown once."""
        key = (finding.group, finding.what)
        seen = key in self._skipped
        self._skipped.add(key)
        return seen

    def end(self, diagnosis: Diagnosis, *, refused: bool) -> None:
        """Print the story, the verdict and the next command."""
        out = self._output.stdout
        out.print()
        if diagnosis.story is not None:
            out.print(Text(harmless(diagnosis.story)), soft_wrap=True)
        style = "bold red" if diagnosis.exit_code else "green" if not diagnosis.warnings else "yellow"
        out.print(Text(self._plain(diagnosis.verdict), style=style), soft_wrap=True)
        if refused:
            self._output.warn("nothing was changed: --fix asks on a terminal; without one, add --yes")
        if diagnosis.next_command is not None:
            out.print(Text.assemble("next: ", (harmless(diagnosis.next_command), "cyan")), soft_wrap=True)

    def _lines(self, finding: Finding) -> Iterator[Text]:
        mark, plain, style = _MARKS[finding.level]
        head = Text.assemble("  ", (plain if self._ascii else mark, style), " ", self._plain(finding.what))
        if self._verbose:
            head.append(f"  [{finding.id}]", style="dim")
        yield head
        explained = finding.level in (Level.WARN, Level.FAIL, Level.INFO)
        if finding.why and (explained or self._verbose):
            yield Text(f"      {self._plain(finding.why)}", style="dim")
        if self._verbose:
            for line in finding.evidence:
                yield Text(f"      {self._plain(line)}", style="dim")
        if finding.level in (Level.WARN, Level.FAIL) or (finding.commands and self._verbose):
            for command in finding.commands:
                yield Text.assemble("      $ ", (self._plain(command), "cyan"))

    def _plain(self, text: str) -> str:
        text = harmless(text)
        return text.replace("…", "...").replace("°", " ") if self._ascii else text
