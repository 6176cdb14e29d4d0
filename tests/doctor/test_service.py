"""The service as doctor finds it, on a machine with a real systemd."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.rigs.guest import PASSWORD, UNIT, Guest
from tests.service.conftest import make_guest  # noqa: F401  (the fixture ``guest``)
from vbatch import __version__, config
from vbatch.doctor.checks import service
from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Level

UNIT_FILE = "/etc/systemd/system/vbatch-worker@.service"


def found(machine: Guest) -> dict[str, dict[str, Any]]:
    done = machine.sudo("doctor", "service", "--json", check=False)
    return {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}


def test_without_a_service(monkeypatch: pytest.MonkeyPatch, tmp_path: Any) -> None:
    monkeypatch.setattr(service, "places", lambda _scope: _Nowhere(tmp_path))
    findings = [*service._unit(Facts(settings=config.load())), *service.state()]
    assert [(finding.id, finding.level) for finding in findings] == [
        ("service.none", Level.INFO),
        ("service.none", Level.SKIP),
    ]


class _Nowhere:
    """The places of a scope in which nothing is installed."""

    def __init__(self, folder: Any) -> None:
        self.unit = folder / "none.service"


@pytest.mark.root
def test_a_service_from_its_start_to_its_end(guest: Guest) -> None:
    """Installed, running, stopped, disabled, of another version, of a Python that is gone."""
    guest.install()
    guest.machine.wait_for("it is ready", guest.is_active())
    running = found(guest)
    assert running["service.running"]["level"] == "ok"
    of_service = [one for one in running.values() if one["group"] == "service"]
    assert [one for one in of_service if one["level"] != "ok"] == []

    guest.machine.run(["systemctl", "stop", UNIT])
    assert found(guest)["service.stopped"]["commands"] == ["systemctl start vbatch-worker@0"]

    guest.machine.run(["systemctl", "disable", UNIT])
    assert found(guest)["service.disabled"]["level"] == "warn"

    text = guest.machine.read(UNIT_FILE)
    guest.machine.write(UNIT_FILE, text.replace(f"vbatch {__version__}", "vbatch 0.0.1"))
    edited = found(guest)
    assert "0.0.1" in edited["service.outdated"]["what"]
    assert edited["service.edited"]["level"] == "info"

    python = next(line for line in text.splitlines() if line.startswith("ExecStart=")).split()[0]
    guest.machine.write(UNIT_FILE, text.replace(python, "ExecStart=:/gone/bin/python"))
    assert found(guest)["service.broken"]["level"] == "fail"


@pytest.mark.root
def test_a_failure_is_told_in_the_workers_own_words(guest: Guest) -> None:
    """Mutant: showing the exit code alone."""
    guest.add_postgresql()
    guest.store_url = guest.store_url.replace(PASSWORD, "wrong-horse")
    guest.sudo("install-service", "--", "--engine", "echo", check=False)
    failed = found(guest)["service.failed"]
    assert failed["level"] == "fail"
    assert "refuses vbatch: wrong password" in failed["what"]
    assert failed["commands"][-1] == "systemctl restart vbatch-worker@0"
    assert "wrong-horse" not in json.dumps(failed)
