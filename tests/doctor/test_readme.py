"""The README's screens of doctor, played on the incident made again."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.rigs import engines
from tests.rigs.commands import Home, chats
from tests.rigs.nvml import GIB, StandInDriver
from tests.rigs.readme import consoles
from tests.test_docs import pattern, shape
from vbatch.store import COMMAND_PATIENCE, Store


@pytest.mark.usefixtures("gpu_build")
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_the_screens_of_doctor(home: Home, driver: StandInDriver, tmp_path: Path) -> None:
    (steps,) = consoles("doctor")
    home.submit(chats(5000, model="qwen-8b"))
    store = Store(home.database_url, patience=COMMAND_PATIENCE)
    with engines.orphan() as engine:
        engines.in_ledger(store, engine.identity, worker=engines.dead_identity(), state_dir=home.state_dir)
        driver.has((engine.pid, round(14.37 * GIB)))
        for step in steps:
            assert step.command is not None
            command = step.command.split()
            assert command[0] == "vbatch"
            answers = ["--yes"] if "--fix" in command else []
            done = home.run(*command[1:], *answers, check=False)
            printed = done.stdout.replace(str(tmp_path), "/home/you")
            assert re.fullmatch(pattern(step.expected), shape(printed)), f"$ {step.command}\n{printed}"
    store.close()
