"""The commands for the machine: doctor, selftest, and the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vbatch.cli.arguments import Json, SystemScope, UserScope
from vbatch.cli.worker_commands import app

__all__ = ["app"]


@app.command()
def demo() -> int:
    """Answer a small batch with a real small model."""
    from vbatch.cli.demo import demo as run

    return run()


@app.command()
def doctor(
    *,
    checks: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[CHECK]...",
            help="Groups or checks: host, store, queue, gpu, engine, endpoint, service, server, neighbours "
            "[default: all of these]; models answers which models fit the GPU.",
            show_default=False,
        ),
    ] = None,
    fix: Annotated[
        bool, typer.Option("--fix", help="Repair what is provably vbatch's own; asks before each repair.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask, for services and scripts.")] = False,
    wait: Annotated[
        str | None,
        typer.Option(
            "--wait",
            metavar="TIME",
            help="Wait this long for what passes by itself, such as a database that starts late.",
        ),
    ] = None,
    min_free_gb: Annotated[
        float | None,
        typer.Option(
            "--min-free-gb",
            metavar="N",
            min=0,
            max=1_000_000,
            help="Require this much free GPU memory, in GiB.  [default: what the models need, or 12]",
            show_default=False,
        ),
    ] = None,
    force_clear: Annotated[
        bool,
        typer.Option(
            "--force-clear",
            help="End engines left behind by dead workers, without asking, however much memory is free.",
        ),
    ] = False,
    report: Annotated[
        Path | None,
        typer.Option(
            "--report", metavar="FILE", help="Write a bundle for a bug report, without secrets and prompts."
        ),
    ] = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Import vLLM even if nothing has changed since the last check.")
    ] = False,
    list_: Annotated[
        bool, typer.Option("--list", help="Show every finding with its meaning and remedy.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show the evidence too.")] = False,
    json: Json = False,
) -> int:
    """Report what is wrong, and repair what is vbatch's own.

    One line per check, causes first; what follows from a problem is left out. Without --fix or --force-clear
    nothing is changed, and with them only what is provably vbatch's own. Exits with 0 when vbatch can work, 1 when
    a problem prevents that, 75 when the store cannot be reached yet, 78 when a person must fix the configuration.
    """
    from vbatch.cli import doctor as commands
    from vbatch.errors import UsageError

    if list_ and checks:
        raise UsageError("--list shows every finding and takes no names", hint="vbatch doctor --list")
    if yes and not fix:
        raise UsageError("--yes answers what --fix asks", hint="vbatch doctor --fix --yes")
    if list_:
        return commands.list_findings(json=json)
    return commands.doctor(
        commands.Request(
            names=checks or (),
            fix=fix,
            yes=yes,
            wait=wait,
            min_free_gb=min_free_gb,
            force_clear=force_clear,
            report=report,
            fresh=fresh,
            verbose=verbose,
            json=json,
        )
    )


@app.command()
def selftest(
    *,
    duration: Annotated[
        str, typer.Option("--for", metavar="TIME", help="Kill for this long: 30s, 10m.")
    ] = "30s",
    json: Json = False,
) -> int:
    """Kill workers on this machine and count what was lost.

    Runs a batch on the echo engine, in a store of its own beside yours, while workers are killed at random. Exits
    with 1 if a request was lost, was answered twice or got the answer of another one.
    """
    from vbatch.cli.selftest import selftest as run

    return run(duration=duration, json=json)


@app.command()
def install_service(
    *,
    worker_arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- RUN_WORKER_OPTIONS",
            help="Options of `vbatch run-worker` for the service, after a double dash.  [default: as installed]",
            show_default=False,
        ),
    ] = None,
    user: UserScope = False,
    system: SystemScope = False,
    gpu: Annotated[
        list[str] | None,
        typer.Option(
            "--gpu",
            metavar="N[,N]|all",
            help="Use this GPU, or one engine over several; repeatable; all: a unit for each GPU without a display.  "
            "[default: as installed, else all]",
        ),
    ] = None,
    run_as: Annotated[
        str | None,
        typer.Option(
            "--run-as",
            metavar="USER",
            help="The account of a system service.  [default: as installed, else the user who called sudo]",
        ),
    ] = None,
    serve: Annotated[
        bool, typer.Option("--serve", help="Also run `vbatch serve`, as vbatch-serve.service.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and the units, change nothing.")
    ] = False,
    now: Annotated[
        bool, typer.Option("--now/--no-now", help="Start the worker now, not only at the next boot.")
    ] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace a unit that was changed by hand.")] = False,
    json: Json = False,
) -> None:
    """Have systemd run a worker at every boot, one per GPU.

    systemd restarts it after a crash too. As root it becomes a service of the machine, otherwise one of your
    own, which needs no root.
    """
    from vbatch.cli.service import install_service as run

    run(
        worker_arguments or [],
        user=user,
        system=system,
        wanted_gpus=gpu or [],
        run_as=run_as,
        serve=serve,
        dry_run=dry_run,
        start=now,
        force=force,
        json=json,
    )


@app.command()
def uninstall_service(
    *,
    user: UserScope = False,
    system: SystemScope = False,
    force: Annotated[
        bool, typer.Option("--force", help="Remove a unit that was changed by hand too.")
    ] = False,
    json: Json = False,
) -> None:
    """Remove what install-service installed.

    Nothing else is touched; the workers are stopped first. The queue, the results and the models stay.
    """
    from vbatch.cli.service import uninstall_service as run

    run(user=user, system=system, force=force, json=json)
