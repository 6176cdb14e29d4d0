"""Checks of the server that systemd runs: that it answers, at the port on which its process really listens."""

from __future__ import annotations

from collections.abc import Iterator
from http import HTTPStatus

from vbatch.doctor.facts import Facts
from vbatch.doctor.findings import Check, Entry, Finding
from vbatch.system import listening
from vbatch.system.systemd import NoSystemd, Systemd, SystemdRefused, require_running
from vbatch.system.units import SERVER, SERVER_UNIT, Scope, places

RUNNING = Entry(
    id="server.unit",
    means="install-service --serve has systemd run `vbatch serve`; programs find the queue there while it answers",
    commands=("journalctl -u vbatch-serve -b", "systemctl restart vbatch-serve"),
    advice="fix what its last words name",
)


def _running(_facts: Facts) -> Iterator[Finding]:
    """Ask systemd for the process, and the process for its health."""
    installed = [scope for scope in Scope if places(scope).server.exists()]
    if not installed:
        yield RUNNING.skip("no server is installed as a service")
    for scope in installed:
        try:
            require_running(scope)
            yield _of(Systemd(scope))
        except (NoSystemd, SystemdRefused) as error:
            yield RUNNING.skip(f"the state of the {scope} server is unknown: {error.message}")


def _of(systemd: Systemd) -> Finding:
    seen = systemd.show(SERVER_UNIT, "ActiveState", "SubState", "MainPID")
    journal = f"journalctl{systemd.flag} -u {SERVER} -b"
    again = (journal, f"systemctl{systemd.flag} restart {SERVER}")
    if seen["ActiveState"] == "failed" or seen["SubState"] == "auto-restart":
        said = systemd.last_words(SERVER_UNIT)
        errors = [line.removeprefix("error: ") for line in said if line.startswith("error: ")]
        hints = [line.removeprefix("hint: ") for line in said if line.startswith("hint: ")]
        reason = errors[-1] if errors else "its log has the reason"
        commands = (*hints[-1:], *again) if errors else again
        return RUNNING.warn(
            f"{SERVER} does not stay up: {reason}", evidence=tuple(said[-5:]), commands=commands
        )
    if seen["ActiveState"] == "inactive":
        start = (f"systemctl{systemd.flag} start {SERVER}",)
        return RUNNING.info(f"{SERVER} is stopped; it starts at the next boot", commands=start)
    try:
        found = list(listening.addresses(int(seen.get("MainPID") or 0)))
    except PermissionError:
        return RUNNING.skip(f"{SERVER} runs; only its account and root can see where it listens")
    reason = "it listens on no port"
    for address, port in found:
        where = listening.url(address, port)
        try:
            status = listening.status(address, port, "/health")
        except OSError as error:
            reason = f"{where}: {error}"
            continue
        if status == HTTPStatus.OK:
            return RUNNING.ok(f"{SERVER} answers at {where}")
        reason = f"{where}/health answers with {status}: it does not reach its store"
    return RUNNING.warn(f"{SERVER} runs and does not answer: {reason}", commands=again, passing=True)


CHECKS = (Check(name="server.unit", finds=(RUNNING,), run=_running),)
