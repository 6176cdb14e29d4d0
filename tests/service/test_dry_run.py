"""A dry run shows plan and unit wherever it runs: without a systemd, without root."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.rigs.commands import Home
from vbatch.system.systemd import BOOTED, AbsentSystemd
from vbatch.system.units import Scope

pytestmark = pytest.mark.skipif(
    BOOTED.is_dir(), reason="a systemd runs here; tests/service/test_install.py asks it"
)


@pytest.mark.parametrize("scope", ["--user", "--system"])
@pytest.mark.parametrize("database_url", ["sqlite"], indirect=True)
def test_it_needs_no_systemd(home: Home, scope: str) -> None:
    """Mutant: the refusal of an installation."""
    done = home.run("install-service", scope, "--dry-run")
    assert "is not looked up" in done.stderr or "are not looked up" in done.stderr
    assert "nothing was changed" in done.stdout + done.stderr
    assert "[Service]" in done.stdout
    assert "ExecStart=" in done.stdout
    assert "vbatch serve\n" not in done.stdout
    both = home.run("install-service", scope, "--serve", "--dry-run")
    assert both.stdout.startswith(done.stdout)  # the workers' unit is the same
    assert "\nExecStart=:" in both.stdout.removeprefix(done.stdout)
    assert " -P -m vbatch serve\n" in both.stdout
    assert "vbatch-serve.service (new)" in both.stderr
    document = json.loads(home.run("install-service", scope, "--serve", "--dry-run", "--json").stdout)
    assert document["server_unit"].endswith("/vbatch-serve.service")
    assert document["server_unit_state"] == "missing"
    assert document["unit_text"] + "\n" + document["server_unit_text"] == both.stdout
    refused = home.run("install-service", scope, check=False)
    assert refused.returncode != 0


@pytest.mark.parametrize(
    ("point", "unit"),
    [
        ("/data", "data.mount"),
        ("/", "-.mount"),
        ("/mnt/my disk", "mnt-my\\x20disk.mount"),
        ("/a-b", "a\\x2db.mount"),
    ],
)
def test_the_name_of_a_mount_is_systemds(point: str, unit: str) -> None:
    assert AbsentSystemd(Scope.SYSTEM).mount_unit(Path(point)) == unit
