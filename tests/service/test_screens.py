"""What install-service and uninstall-service show a person at the end."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.service.test_unit import HOMELESS, PERSON, spec
from vbatch.cli import service as screens
from vbatch.cli.output import Output
from vbatch.service.accounts import Account
from vbatch.service.install import Installed, Started
from vbatch.service.plan import EnvironmentPlan, FileState, Plan, UnitPlan
from vbatch.service.uninstall import Uninstalled
from vbatch.store.hosting import Database, Kind
from vbatch.system.servers import Container
from vbatch.system.units import Scope, places

NO_RESTART = Container(engine="docker", name="my pg", restart_policy="no")
SQLITE = Database(kind=Kind.EMBEDDED, where="/home/me/vbatch.db")


def plan(scope: Scope = Scope.SYSTEM, *, account: Account = PERSON, database: Database = SQLITE) -> Plan:
    unit = UnitPlan(
        spec=spec(scope), text="", state=FileState.MISSING, diff="", drop_ins=(), faults=(), write=True
    )
    return Plan(
        scope=scope,
        places=places(scope),
        account=account,
        systemd=252,
        unit=unit,
        environment=EnvironmentPlan(text="", names=()),
        instances=("vbatch-worker@0.service",),
        surplus=(),
        linger=False,
        start=True,
        database=database,
        idle_gpus=(),
        display_gpus=(),
        rival=None,
    )


def screen(planned: Plan, *started: Started, refused: str | None = None) -> str:
    done = Installed(plan=planned, changed=True, instances=started, linger_refused=refused)
    return "\n".join(screens._installed_lines(done))


@pytest.fixture(autouse=True)
def caller(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screens, "account", lambda: PERSON)


def test_a_container_that_does_not_come_back_is_said_with_the_command() -> None:
    """Mutant: leave it out; the service waits for ever at the next boot."""
    database = Database(kind=Kind.CONTAINER, where="127.0.0.1:4332", container=NO_RESTART)
    lines = screen(plan(database=database)).splitlines()
    said = lines.index("but the database's container does not come back after a reboot; have it do so:")
    assert lines[said + 1] == "  docker update --restart unless-stopped 'my pg'"
    back = replace(database, container=replace(NO_RESTART, restart_policy="always"))
    assert "does not come back" not in screen(plan(database=back))


def test_batches_are_submitted_in_the_services_account() -> None:
    assert "give it work    vbatch submit" in screen(plan())
    assert "give it work    vbatch submit" in screen(plan(Scope.USER, account=HOMELESS))
    assert "give it work    sudo -u daemon HOME=/var/lib/vbatch " in screen(plan(account=HOMELESS))


def test_what_is_not_started_or_not_ready_is_said() -> None:
    assert "start it now    systemctl start vbatch-worker@0.service" in screen(plan())
    waiting = Started(unit="vbatch-worker@0.service", ready=False, status="waiting for the store")
    assert "vbatch-worker@0 is not ready yet, and continues by itself: waiting for the store" in screen(
        plan(), waiting
    )
    assert "sudo loginctl enable-linger daemon" in screen(plan(Scope.USER), refused="Access denied")


def test_what_a_person_should_know_is_warned_about(capsys: pytest.CaptureFixture[str]) -> None:
    odd = replace(plan(), idle_gpus=(1, 2), display_gpus=(3,), rival=Path("/home/daemon/rival"))
    screens._warn(Output(), odd)
    said = capsys.readouterr().err
    assert "GPU 1, 2: no worker" in said
    assert "GPU 3: no worker, because a display hangs on it" in said
    assert "/home/daemon/rival" in said


def test_what_uninstalling_kept() -> None:
    done = Uninstalled(
        scope=Scope.USER, instances=(), removed=("a",), kept=("/drop/in.conf",), lingers="alice"
    )
    shown = "\n".join(screens._uninstalled_lines(done))
    assert "kept /drop/in.conf: it is yours" in shown
    assert "  sudo loginctl disable-linger alice" in shown


def test_the_stop_limit_of_a_plan_is_its_units() -> None:
    assert plan().drain_limit == timedelta(minutes=5)
