"""The commands for the workers of this machine: run one, have them pause and continue."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from vbatch.cli.arguments import Json
from vbatch.cli.label_commands import app

__all__ = ["app"]


@app.command()
def run_worker(
    *,
    vllm_flags: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="-- VLLM_FLAGS",
            help="Flags of `vllm serve` for every model, after a double dash.",
            show_default=False,
        ),
    ] = None,
    engine: Annotated[
        Literal["vllm", "echo", "endpoint"] | None,
        typer.Option(
            "--engine",
            help="What answers: vLLM, other servers (endpoint), or an echo for tests (model `echo`).  [default: vllm]",
        ),
    ] = None,
    url: Annotated[
        list[str] | None,
        typer.Option("--url", metavar="URL", help="A server with OpenAI's API that answers; repeatable."),
    ] = None,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="N[,N]|all",
            help="Use this GPU, or one engine over several; all: a worker for each GPU without a display.  "
            "[default: all, or one GPU where a display hangs on another or a model wants several]",
        ),
    ] = None,
    drain: Annotated[
        bool, typer.Option("--drain", help="Exit when nothing is left that the engine serves.")
    ] = False,
    preload: Annotated[
        str | None,
        typer.Option("--preload", metavar="MODEL", help="Load this model before there is work for it."),
    ] = None,
    max_inflight: Annotated[
        int | None,
        typer.Option("--max-inflight", metavar="N", help="Give the engine this many requests at once."),
    ] = None,
    max_runtime: Annotated[
        str | None,
        typer.Option(
            "--max-runtime",
            metavar="TIME",
            help="Have ended by then, as after a signal: 4h. For a job with a time limit; what is left is handed back.",
        ),
    ] = None,
) -> int:
    """Run the requests in the queue, one model after another.

    The first Ctrl-C lets running requests finish and saves them; a second one stops at once. Nothing is
    lost either way.
    """
    from vbatch.cli.arguments import duration
    from vbatch.cli.worker import run_worker as run

    return run(
        vllm_flags or [],
        engine=engine,
        urls=url or [],
        gpu=gpu,
        drain=drain,
        preload=preload,
        max_inflight=max_inflight,
        max_runtime=None if max_runtime is None else duration(max_runtime, "--max-runtime"),
    )


@app.command()
def pause(
    *,
    now: Annotated[
        bool, typer.Option("--now", help="Do not wait for running requests: they run again later.")
    ] = False,
    everyone: Annotated[bool, typer.Option("--all", help="The workers of every account; as root.")] = False,
    json: Json = False,
) -> None:
    """Pause your workers on this host; the GPU is given back.

    Running requests finish first, then the model is unloaded. The pause outlasts a reboot; vbatch resume ends it.
    """
    from vbatch.cli.pause import pause as run

    run(everyone=everyone, now=now, json=json)


@app.command()
def resume(
    *,
    everyone: Annotated[bool, typer.Option("--all", help="End a pause of every account; as root.")] = False,
    json: Json = False,
) -> None:
    """Have paused workers continue."""
    from vbatch.cli.pause import resume as run

    run(everyone=everyone, json=json)
