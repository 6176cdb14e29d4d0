"""``selftest``: workers are killed at random on the user's own machine and store; nothing may be lost."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import timedelta

from rich.console import RenderableType
from rich.text import Text

from vbatch import selftest as trials
from vbatch.cli import words
from vbatch.cli.opening import settings as load_settings
from vbatch.cli.output import Output
from vbatch.errors import ExitCode
from vbatch.selftest import Trial


def selftest(*, seconds: float, json: bool) -> int:
    """Run the trial and return the exit code: 1 when a request was lost, doubled or answered wrongly."""
    output = Output.of(json=json)
    settings = load_settings(output)
    output.note(f"killing workers for {seconds:g} s, in a store of its own beside yours")
    trial = trials.run(
        settings.store_url,
        duration=timedelta(seconds=seconds),
        tell=lambda kills, saved, total: output.transient(
            f"{words.count(kills, 'kill')}, {saved:,} of {total:,} requests saved"
        ),
    )
    output.show(_Shown(trial))
    return ExitCode.DONE if trial.passed else ExitCode.FAILED


@dataclass(frozen=True, slots=True)
class _Shown:
    trial: Trial

    def ids(self) -> list[str]:
        return []

    def document(self) -> object:
        return asdict(self.trial) | {"passed": self.trial.passed}

    def screen(self) -> RenderableType:
        trial = self.trial
        verdict = (
            Text("nothing was lost", style="green") if trial.passed else Text("THIS FAILED", style="bold red")
        )
        return Text.assemble(
            f"{words.count(trial.requests, 'request')}, {words.count(trial.kills, 'worker')} killed, "
            f"{trial.saved_under_fire:,} answers saved in between, {trial.seconds:.0f} s\n",
            f"lost {trial.lost}, doubled {trial.doubled}, wrong {trial.wrong}: ",
            verdict,
        )
