"""The table of engine kinds and the two places that must name the same kinds, because they cannot import it."""

from __future__ import annotations

from typing import get_args, get_type_hints

from vbatch.cli.worker_commands import run_worker
from vbatch.config import Settings
from vbatch.engine.kinds import KINDS


def test_every_kind_can_be_chosen_in_the_settings_and_on_the_command_line() -> None:
    """The settings lie below the table, and --help does not import it. Mutant: a kind that one of them leaves out."""
    (choices, _none) = get_args(get_type_hints(run_worker)["engine"])
    assert get_args(choices) == tuple(KINDS)
    assert get_args(Settings.model_fields["engine"].annotation) == tuple(KINDS)
