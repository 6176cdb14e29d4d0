"""``install-service`` and ``uninstall-service``: what would be done, what was done, and what to do next."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import typer

from vbatch.cli.app import app
from vbatch.cli.arguments import check_vllm_flags, chosen_endpoints
from vbatch.cli.output import Mode, Output, Result
from vbatch.engine.kinds import KINDS
from vbatch.errors import UsageError
from vbatch.service import install, plan, uninstall
from vbatch.service.accounts import account
from vbatch.service.install import Installed
from vbatch.service.plan import FileState, Plan, UnitPlan, Wish
from vbatch.service.uninstall import Uninstalled
from vbatch.system import units
from vbatch.system.units import SERVER_UNIT, Scope


def install_service(
    worker_arguments: Sequence[str],
    *,
    user: bool,
    system: bool,
    wanted_gpus: Sequence[str],
    run_as: str | None,
    serve: bool,
    dry_run: bool,
    start: bool,
    force: bool,
    json: bool,
) -> None:
    """Plan, and unless it is a dry run, do it and wait for the worker."""
    _check_worker_options(worker_arguments)
    output = Output.of(json=json)
    wish = Wish(
        scope=_scope(user=user, system=system),
        gpus=tuple(wanted_gpus),
        run_as=run_as,
        worker_arguments=tuple(worker_arguments),
        serve=serve,
        start=start,
        force=force,
        dry_run=dry_run,
    )
    planned = plan.plan(wish)
    _warn(output, planned)
    if dry_run:
        _show_plan(output, planned)
        return
    for file, unit in _units(planned):
        if unit.diff:
            output.note(unit.diff)
        if unit.state is FileState.EDITED and not unit.write:
            output.warn(
                f"{file} was changed by hand and stays as it is; {_edit(planned, file)} keeps changes "
                "apart from it, --force replaces it"
            )
    done = install.install(planned, report=_Steps(output))
    output.show(_installed_result(done))


def _check_worker_options(arguments: Sequence[str]) -> None:
    """Refuse at once what the worker itself would refuse at every start, and what a service cannot have.

    Raises UsageError, ConfigError, or click's own; ``--help`` shows what there is.
    """
    run_worker = typer.main.get_command(app).commands["run-worker"]  # type: ignore[attr-defined]  # a group, says the app
    with run_worker.make_context("vbatch run-worker", list(arguments)) as context:
        check_vllm_flags(context.params["vllm_flags"] or [])
        engine, _ = chosen_endpoints(context.params["engine"], context.params["url"] or [])
        preload = context.params["preload"]
        if engine is not None and preload is not None:
            KINDS[engine].require(preload)
        if context.params["drain"]:
            raise UsageError("a service that ends when the queue is empty would not run the next batch")
        if context.params["gpu"] is not None:
            raise UsageError(
                "each worker of a service has a GPU of its own",
                hint=f"vbatch install-service --gpu {context.params['gpu']}, before the double dash",
            )


def _warn(output: Output, planned: Plan) -> None:
    """Warn of what is no reason to refuse, and that a person would probably not want."""
    for words in planned.unseen:
        output.warn(words)
    for file, unit in _units(planned):
        for fault in unit.faults:
            remedy = f"{_edit(planned, file)} fixes it"
            output.warn(f"systemd does not accept one of your drop-ins; {remedy}: {fault}")
    if planned.rival is not None:
        other = Scope.USER if planned.scope is Scope.SYSTEM else Scope.SYSTEM
        output.warn(
            f"there is also a {other} service of vbatch ({planned.rival}): both use the same queue and GPU; "
            f"to remove that one: {units.scoped_command(other, 'uninstall-service')}"
        )
    if planned.idle_gpus:
        numbers = ", ".join(map(str, planned.idle_gpus))
        output.note(f"GPU {numbers}: no worker, as installed before; --gpu N for each GPU names others")
    if planned.display_gpus:
        numbers = ", ".join(map(str, planned.display_gpus))
        output.note(f"GPU {numbers}: no worker, because a display hangs on it; --gpu N names it")
    if planned.scope is Scope.SYSTEM and planned.account.uid == 0:
        output.note("the worker will run as root; --run-as USER gives it another account")


def uninstall_service(*, user: bool, system: bool, force: bool, json: bool) -> None:
    """Stop, disable, remove; show what was kept."""
    output = Output.of(json=json)
    done = uninstall.uninstall(_scope(user=user, system=system), report=_Steps(output), force=force)
    output.show(_uninstalled_result(done))


def _scope(*, user: bool, system: bool) -> Scope:
    """Return the scope asked for: by default the machine's as root, the person's own otherwise."""
    if user and system:
        raise UsageError("--user and --system exclude each other")
    return Scope.SYSTEM if system or (os.geteuid() == 0 and not user) else Scope.USER


class _Steps:
    """Shows each new line of progress once, however often it is reported."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._last = ""

    def __call__(self, line: str) -> None:
        if line != self._last:
            self._last = line
            self._output.transient(line)


def _show_plan(output: Output, planned: Plan) -> None:
    """Print the plan on stderr and the units on stdout, so that ``> unit`` keeps them alone."""
    if output.mode is Mode.JSON:
        server = planned.server.text if planned.server is not None else None
        texts = {"unit_text": planned.unit.text, "server_unit_text": server}
        output.document(_plan_document(planned) | texts)
        return
    output.note("\n".join([*_plan_lines(planned), "nothing was changed"]))
    for _, unit in _units(planned):
        if unit.diff:
            output.note(unit.diff)
    sys.stdout.write("\n".join(unit.text for _, unit in _units(planned)))


def _units(planned: Plan) -> list[tuple[Path, UnitPlan]]:
    """Return the unit of the workers and, where there is one, that of the server."""
    pairs = ((planned.places.unit, planned.unit), (planned.places.server, planned.server))
    return [(file, unit) for file, unit in pairs if unit is not None]


def _plan_lines(planned: Plan) -> list[str]:
    places = planned.places
    lines = [
        f"a {planned.scope} service of systemd {planned.systemd}, run as {planned.account.name}",
        *(f"  unit         {file} ({_UNIT_WORDS[unit.state]})" for file, unit in _units(planned)),
        *(f"  drop-in      {file}" for _, unit in _units(planned) for file in unit.drop_ins),
    ]
    if planned.environment.write:
        lines.append(f"  environment  {places.environment} takes {', '.join(planned.environment.names)}")
    lines += [
        f"  at boot      {' '.join(planned.instances)}",
        *(f"  no longer    {name}" for name in planned.surplus),
        f"  database     {planned.database.words}",
    ]
    if planned.unit.spec.worker_arguments:
        lines.append(f"  options      {shlex.join(planned.unit.spec.worker_arguments)}")
    if planned.linger:
        lines.append(f"  linger       {planned.account.name}'s services start at boot, without a login")
    return lines


_UNIT_WORDS = {
    FileState.MISSING: "new",
    FileState.CURRENT: "already current",
    FileState.OUTDATED: "differs, is replaced",
    FileState.EDITED: "changed by hand",
}


def _plan_document(planned: Plan) -> dict[str, object]:
    return {
        "scope": planned.scope,
        "systemd": planned.systemd,
        "user": planned.account.name,
        "unit": str(planned.places.unit),
        "unit_state": planned.unit.state,
        "unit_diff": planned.unit.diff,
        "server_unit": str(planned.places.server) if planned.server is not None else None,
        "server_unit_state": planned.server.state if planned.server is not None else None,
        "drop_ins": [file for _, unit in _units(planned) for file in unit.drop_ins],
        "drop_in_faults": [fault for _, unit in _units(planned) for fault in unit.faults],
        "options": list(planned.unit.spec.worker_arguments),
        "environment_file": str(planned.places.environment),
        "environment_names": list(planned.environment.names),
        "instances": list(planned.instances),
        "no_longer": list(planned.surplus),
        "linger": planned.linger,
        "idle_gpus": list(planned.idle_gpus),
        "display_gpus": list(planned.display_gpus),
        "other_unit": None if planned.rival is None else str(planned.rival),
        "database": planned.database.kind,
        "database_hint": planned.database.hint,
        "not_looked_up": list(planned.unseen),
    }


def _installed_result(done: Installed) -> Result:
    return Result(
        ids=done.plan.instances,
        document=lambda: _installed_document(done),
        screen=lambda: "\n".join(_installed_lines(done)),
    )


def _installed_document(done: Installed) -> dict[str, object]:
    return _plan_document(done.plan) | {
        "changed": done.changed,
        "linger_refused": done.linger_refused,
        "workers": [asdict(started) for started in done.instances],
        "server": asdict(done.server) if done.server is not None else None,
    }


def _installed_lines(done: Installed) -> list[str]:
    planned = done.plan
    systemctl = "systemctl --user" if planned.scope is Scope.USER else "systemctl"
    journal = "journalctl --user" if planned.scope is Scope.USER else "journalctl"
    first = planned.instances[0].removesuffix(".service")
    lines = [] if done.changed else ["already current: nothing was changed"]
    lines.append(planned.database.words)
    for started in (*done.instances, *filter(None, [done.server])):
        name = started.unit.removesuffix(".service")
        state = "is ready" if started.ready else "is not ready yet, and continues by itself"
        status = "" if started.status in ("", "ready") else f": {started.status}"
        lines.append(f"{name} {state}{status}")
    if done.linger_refused is not None:
        lines.append("it starts when you log in; to start it at boot, an administrator runs:")
        lines.append(f"  sudo loginctl enable-linger {planned.account.name}")
    else:
        lines.append("it starts at every boot and after every crash; nothing is left to do by hand")
    if planned.database.hint is not None:
        lines.append("but the database's container does not come back after a reboot; have it do so:")
        lines.append(f"  {planned.database.hint}")
    if not done.instances:
        names = (*planned.instances, *([SERVER_UNIT] if planned.server else []))
        lines.append(f"  start it now    {systemctl} start {' '.join(names)}")
    lines.append(f"  give it work    {_vbatch_of(planned)} submit prompts.jsonl")
    lines.append(f"  follow its log  {journal} -fu {first}")
    return lines


def _uninstalled_result(done: Uninstalled) -> Result:
    return Result(
        ids=done.instances,
        document=lambda: {
            "scope": done.scope,
            "stopped": list(done.instances),
            "removed": list(done.removed),
            "kept": list(done.kept),
            "lingers": done.lingers,
        },
        screen=lambda: "\n".join(_uninstalled_lines(done)),
    )


def _uninstalled_lines(done: Uninstalled) -> list[str]:
    kept = [f"kept {file}: it is yours" for file in done.kept]
    if (user := done.lingers) is not None:
        kept.append(f"kept linger of {user}; an administrator switches it off:")
        kept.append(f"  sudo loginctl disable-linger {user}")
    if not done.removed:
        return [f"no {done.scope} service of vbatch is installed", *kept]
    stopped = [f"stopped {name}" for name in done.instances]
    removed = [f"removed {what}" for what in done.removed]
    return [*stopped, *removed, *kept, "the queue, the results and the models stay"]


def _edit(planned: Plan, file: Path) -> str:
    systemctl = "systemctl --user" if planned.scope is Scope.USER else "sudo systemctl"
    return f"{systemctl} edit {file.name}"


def _vbatch_of(planned: Plan) -> str:
    """Return how the person calls vbatch so that it uses the service's store: in the service's account."""
    owner = planned.account
    if planned.scope is Scope.USER or owner == account():
        return "vbatch"
    return f"sudo -u {shlex.quote(owner.name)} HOME={shlex.quote(owner.service_home)} {units.own_command()}"
