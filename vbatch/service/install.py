"""Carry out a plan: write, reload, enable, start, and wait until the worker says that it is ready."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import timedelta

from vbatch.errors import VbatchError
from vbatch.service import server
from vbatch.service.plan import LINGER_REMARK, FileState, Plan
from vbatch.service.unit import render
from vbatch.system import files
from vbatch.system.systemd import Systemd, SystemdRefused
from vbatch.system.units import SERVER_UNIT

READY_LIMIT = timedelta(minutes=2)
POLL = timedelta(milliseconds=100)

Report = Callable[[str], None]  # of one line of progress


class ServiceFailed(VbatchError):
    """The service did not become ready."""

    code = "service_failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Started:
    """One instance when install-service is done with it. ``status`` is the worker's own words."""

    unit: str
    ready: bool
    status: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Installed:
    """What was done. ``linger_refused`` is systemd's reason where a person must switch linger on.

    ``server`` is how the server was started, where there is one.
    """

    plan: Plan
    changed: bool
    instances: tuple[Started, ...]
    server: Started | None = None
    linger_refused: str | None


def install(plan: Plan, *, report: Report, limit: timedelta = READY_LIMIT) -> Installed:
    """Do what the plan says; a hand-edited unit stays unless the plan writes it.

    Raises SystemdRefused, and ServiceFailed when the worker ends instead of becoming ready. A worker that
    still waits for something after ``limit`` is no failure: it continues to wait.
    """
    systemd = Systemd(plan.scope)
    where = plan.places
    if plan.environment.write:
        files.replace_text(where.environment, plan.environment.text, mode=0o600)
    refused = _switch_linger_on(systemd, plan) if plan.linger else None
    text, write = plan.unit.text, plan.unit.write
    if plan.linger and refused is None:  # only what was switched on with the unit goes with it
        text = render(replace(plan.unit.spec, remarks=(LINGER_REMARK,)))
        write = write or plan.unit.state is FileState.CURRENT
    if write:
        files.replace_text(where.unit, text, mode=0o644)
    write_server = plan.server is not None and plan.server.write
    if plan.server is not None and write_server:
        files.replace_text(where.server, plan.server.text, mode=0o644)
    if write or write_server:
        systemd.systemctl("daemon-reload")
    if plan.surplus:
        stop(systemd, plan.surplus, report=report, limit=plan.drain_limit + READY_LIMIT)
        systemd.systemctl("disable", *plan.surplus)
    enabled = systemd.enabled_instances(where.units, where.target)
    missing = [name for name in plan.instances if name not in enabled]
    if plan.server is not None and not server.is_enabled(where):
        missing.append(SERVER_UNIT)
    if missing:
        systemd.systemctl("enable", *missing)
        files.sync(where.units / f"{where.target}.wants")
    rewritten = plan.environment.write or write
    started: tuple[Started, ...] = ()
    served: Started | None = None
    if plan.start:
        if plan.server is not None:
            renewed = plan.environment.write or write_server
            systemd.systemctl("restart" if renewed else "start", "--no-block", SERVER_UNIT)
        systemd.systemctl("restart" if rewritten else "start", "--no-block", *plan.instances)
        drains = plan.drain_limit if rewritten else timedelta()
        started = tuple(
            _wait_until_ready(systemd, name, report=report, limit=limit + drains) for name in plan.instances
        )
        if plan.server is not None:
            served = _wait_for_server(systemd, report=report, limit=limit)
    return Installed(
        plan=plan,
        changed=bool(rewritten or write_server or plan.surplus or missing),
        instances=started,
        server=served,
        linger_refused=refused,
    )


def stop(systemd: Systemd, units: tuple[str, ...], *, report: Report, limit: timedelta) -> None:
    """Stop instances and wait until they have drained."""
    systemd.systemctl("stop", "--no-block", *units)
    deadline = time.monotonic() + limit.total_seconds()
    for unit in units:
        while (seen := systemd.show(unit, "ActiveState", "StatusText"))["ActiveState"] not in _AT_REST:
            if time.monotonic() > deadline:
                raise SystemdRefused(f"{unit} did not stop within {limit.total_seconds():g} s")
            report(f"{unit}: {seen['StatusText'] or 'stopping'}")
            time.sleep(POLL.total_seconds())


_AT_REST = ("inactive", "failed")


def _switch_linger_on(systemd: Systemd, plan: Plan) -> str | None:
    """Let the user's services start at boot; return systemd's words where it refuses that to the user."""
    try:
        systemd.linger(plan.account.name, on=True)
    except SystemdRefused as error:
        return error.message
    return None


def _wait_until_ready(systemd: Systemd, unit: str, *, report: Report, limit: timedelta) -> Started:
    """Wait for READY=1, which ends the start job. A start that is not tried again leaves it failed or inactive."""
    deadline = time.monotonic() + limit.total_seconds()
    while True:
        seen = systemd.show(unit, "ActiveState", "Job", "StatusText", "Result", "ExecMainStatus")
        status = seen["StatusText"]
        pending = seen.get("Job", "0") not in ("", "0")
        if seen["ActiveState"] == "active" and not pending:
            return Started(unit=unit, ready=True, status=status)
        if seen["ActiveState"] in _AT_REST and not pending:
            raise _failure(systemd, unit, f"{seen['Result']}, exit {seen['ExecMainStatus']}")
        if time.monotonic() > deadline:
            return Started(unit=unit, ready=False, status=status)
        report(f"{unit}: {status or 'starting'}")
        time.sleep(POLL.total_seconds())


def _wait_for_server(systemd: Systemd, *, report: Report, limit: timedelta) -> Started:
    """Wait for the server's first answer. Raises ServiceFailed where it ends instead."""
    answers = server.wait(systemd, report=report, limit=limit)
    if answers is None:
        raise _failure(systemd, SERVER_UNIT, "it ended")
    return Started(unit=SERVER_UNIT, ready=answers[0], status=answers[1])


def _failure(systemd: Systemd, unit: str, verdict: str) -> ServiceFailed:
    """Repeat the worker's own last words; where it left none, what systemd knows."""
    said = systemd.last_words(unit)
    error = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
    hint = [line.removeprefix("hint: ") for line in said if line.startswith("hint: ")]
    return ServiceFailed(
        f"{unit} did not start: {error[-1] if error else verdict}",
        hint=hint[-1]
        if error and hint
        else f"journalctl{systemd.flag} -u {unit.removesuffix('.service')} -b",
    )
