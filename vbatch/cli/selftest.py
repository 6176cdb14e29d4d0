"""``selftest``: kill workers on this machine and store, and show what was lost."""

from __future__ import annotations

from dataclasses import asdict

from rich.console import RenderableType
from rich.text import Text

from vbatch import pausing
from vbatch.cli.arguments import duration as read_duration
from vbatch.cli.output import Mode, Output, Result
from vbatch.cli.startup import settings
from vbatch.doctor import selftest as trials
from vbatch.doctor.selftest import Trial
from vbatch.errors import ExitCode
from vbatch.text import count
from vbatch.text import duration as show_duration


def selftest(*, duration: str, json: bool) -> int:
    """Run the trial and return the exit code: 1 when a request was lost, doubled or mixed up."""
    limit = read_duration(duration, "--for")
    output = Output.of(json=json)
    loaded = settings(output)
    pausing.require_none(loaded)
    output.note(
        f"killing workers at random for {show_duration(limit.total_seconds())}, beside your own store"
    )
    trial = trials.run(loaded.store_url, duration=limit, report=lambda *now: _report(output, *now))
    output.show(
        Result(document=lambda: asdict(trial) | {"passed": trial.passed}, screen=lambda: _verdict(trial))
    )
    return ExitCode.DONE if trial.passed else ExitCode.FAILED


def _report(output: Output, kills: int, saved: int, total: int) -> None:
    if output.mode is Mode.HUMAN and output.stderr.is_terminal:
        output.transient(f"{count(kills, 'worker')} killed, {saved:,} of {count(total, 'request')} saved")


def _verdict(trial: Trial) -> RenderableType:
    what = f"{count(trial.requests, 'request')}, {count(trial.kills, 'worker')} killed"
    outcome = f"{trial.lost:,} lost, {trial.doubled:,} doubled, {trial.wrong:,} mixed up"
    style = "green" if trial.passed else "bold red"
    return Text.assemble(f"{what} in {show_duration(trial.seconds)}: ", (outcome, style))
