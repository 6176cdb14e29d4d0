"""``selftest``: kill workers on this machine and store, and show what was lost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from rich.console import RenderableType
from rich.text import Text

from vbatch import selftest as trials
from vbatch.cli import words
from vbatch.cli.output import Mode, Output
from vbatch.cli.startup import settings
from vbatch.durations import parse_duration
from vbatch.errors import ExitCode, UsageError
from vbatch.selftest import Trial


def selftest(*, duration: str, json: bool) -> int:
    """Run the trial and return the exit code: 1 when a request was lost, doubled or mixed up."""
    try:
        limit = parse_duration(duration)
    except ValueError as error:
        raise UsageError(f"--for: {error}") from None
    output = Output.of(json=json)
    url = settings(output).store_url
    output.note(
        f"killing workers at random for {words.duration(limit.total_seconds())}, beside your own store"
    )
    trial = trials.run(url, duration=limit, tell=lambda *now: _tell(output, *now))
    output.show(_Verdict(trial))
    return ExitCode.DONE if trial.passed else ExitCode.FAILED


def _tell(output: Output, kills: int, saved: int, total: int) -> None:
    if output.mode is Mode.HUMAN and output.stderr.is_terminal:
        output.transient(
            f"{words.count(kills, 'worker')} killed, {saved:,} of {words.count(total, 'request')} saved"
        )


@dataclass(frozen=True, slots=True)
class _Verdict:
    trial: Trial

    def ids(self) -> list[str]:
        return []

    def document(self) -> dict[str, Any]:
        return asdict(self.trial) | {"passed": self.trial.passed}

    def screen(self) -> RenderableType:
        trial = self.trial
        what = f"{words.count(trial.requests, 'request')}, {words.count(trial.kills, 'worker')} killed"
        outcome = f"{trial.lost:,} lost, {trial.doubled:,} doubled, {trial.wrong:,} mixed up"
        style = "green" if trial.passed else "bold red"
        return Text.assemble(f"{what} in {words.duration(trial.seconds)}: ", (outcome, style))
