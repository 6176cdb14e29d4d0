"""What the command line looks like: every command with its arguments, options and help.

Only Typer is imported here; a command imports what it needs when it runs, so that ``--help`` and TAB are
quick. A command returns its exit code, None for 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from vbatch.cli.arguments import BatchRef, ExitStatus, Json, Quiet, QuietIds, batch_ids

app = typer.Typer(
    invoke_without_command=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Begin with: vbatch demo. The life of a batch: submit, run-worker, status, results.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from vbatch import __version__

        typer.echo(f"vbatch {__version__}")
        raise typer.Exit


@app.callback()
def root(
    context: typer.Context,
    *,
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None:
    """Run OpenAI Batch files through vLLM on your own GPU, and lose nothing when something fails."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


@app.command()
def submit(
    *,
    file: Annotated[
        str, typer.Argument(metavar="FILE|-", help="A JSONL file, one request per line; - is stdin.")
    ],
    model: Annotated[
        str | None,
        typer.Option(
            "--model", "-m", metavar="MODEL", help="Use this model instead of the one that each line names."
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="PATH", help="Where the answers go. Default: beside FILE."),
    ] = None,
    error_file: Annotated[
        str | None,
        typer.Option("--error-file", metavar="PATH", help="Where failed requests go. Default: beside FILE."),
    ] = None,
    name: Annotated[str | None, typer.Option("--name", metavar="TEXT", help="A name of your choice.")] = None,
    priority: Annotated[
        int, typer.Option("--priority", metavar="N", help="Batches with a higher number run first.")
    ] = 0,
    expires_in: Annotated[
        str | None,
        typer.Option(
            "--expires-in", metavar="TIME", help="Stop what is unfinished after this time: 90m, 12h."
        ),
    ] = None,
    metadata: Annotated[
        list[str] | None, typer.Option("--metadata", metavar="K=V", help="Kept with the batch; repeatable.")
    ] = None,
    reuse: Annotated[
        str | None,
        typer.Option(
            "--reuse",
            metavar="ID|last",
            help="Take the answers of that batch, or of the last batch of FILE, for unchanged requests.",
            autocompletion=batch_ids,
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the batch has ended; exit 5 if a request failed.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check the file and store nothing.")] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Check a file of requests, store it, print the batch id.

    A batch is accepted whole or refused whole: if any line is wrong, every wrong line is named and nothing
    is stored.

    --reuse is for an edited file: a request that was answered before, with the same custom_id and a body of the
    same bytes, keeps its answer; only the others run.
    """
    from vbatch.batches import SubmitOptions
    from vbatch.cli.arguments import duration, output_file, pairs
    from vbatch.cli.submit import submit as run

    options = SubmitOptions(
        model=model,
        output=output_file(output, "-o"),
        error_file=output_file(error_file, "--error-file"),
        name=name,
        priority=priority,
        metadata=pairs(metadata or []),
        expires_in=None if expires_in is None else duration(expires_in, "--expires-in"),
        reuse=reuse,
    )
    return run(
        file,
        options,
        wait=wait,
        dry_run=dry_run,
        json=json,
        quiet=quiet,
    )


@app.command("list")
def list_(
    *,
    all_: Annotated[
        bool, typer.Option("--all", "-a", help="Show all batches, not only the newest 20.")
    ] = False,
    json: Json = False,
    quiet: QuietIds = False,
) -> None:
    """List batches, newest first."""
    from vbatch.cli.batch import list_batches

    list_batches(every=all_, json=json, quiet=quiet)


@app.command()
def status(*, batch: BatchRef, json: Json = False, quiet: Quiet = False) -> None:
    """Show a batch: its progress, its speed and its failures."""
    from vbatch.cli.batch import show_status

    show_status(batch, json=json, quiet=quiet)


@app.command()
def watch(
    *, batch: BatchRef, exit_status: ExitStatus = False, json: Json = False, quiet: Quiet = False
) -> int:
    """Follow a batch until it has ended."""
    from vbatch.cli.watch import watch as run

    return run(batch, exit_status=exit_status, json=json, quiet=quiet)


@app.command()
def results(
    *,
    batch: BatchRef,
    errors: Annotated[
        bool, typer.Option("--errors", help="Print the failed requests instead of the answers.")
    ] = False,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to a file, whole or not at all."),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the batch object, which names its files.")
    ] = False,
) -> None:
    """Print the finished lines of a batch, at any time.

    They come in the order of the input file, and always as whole lines.
    """
    from vbatch.cli.batch import results as run

    run(batch, errors=errors, output_path=output, json=json)


@app.command()
def cancel(*, batch: BatchRef, json: Json = False, quiet: Quiet = False) -> None:
    """Cancel a batch; what is finished stays.

    Running requests are stopped. The finished requests are written to the output file, the others to the error
    file as batch_cancelled.
    """
    from vbatch.cli.batch import cancel_batch

    cancel_batch(batch, json=json, quiet=quiet)


@app.command()
def retry(
    *,
    batch: BatchRef,
    output: Annotated[
        str | None,
        typer.Option(
            "--output", "-o", metavar="PATH", help="Where the answers go. Default: beside the old ones."
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Submit the failed requests of a batch as a new batch."""
    from vbatch.cli.batch import retry_batch

    retry_batch(batch, output_path=output, json=json, quiet=quiet)


@app.command()
def delete(
    *,
    batch: BatchRef,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also if its files cannot be written: the folder is gone."),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove an ended batch from the store; its files stay."""
    from vbatch.cli.batch import delete_batch

    delete_batch(batch, force=force, json=json, quiet=quiet)


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
        Literal["vllm", "echo"] | None,
        typer.Option(
            "--engine",
            help="What answers: vLLM, or an echo for tests, which serves the model `echo` alone.  [default: vllm]",
        ),
    ] = None,
    gpu: Annotated[int | None, typer.Option("--gpu", metavar="N", help="Use this GPU.")] = None,
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
) -> None:
    """Run the requests in the queue, one model after another.

    The first Ctrl-C lets running requests finish and saves them; a second one stops at once. Nothing is
    lost either way.
    """
    from vbatch.cli.worker import run_worker as run

    run(
        vllm_flags or [],
        engine=engine,
        gpu=gpu,
        drain=drain,
        preload=preload,
        max_inflight=max_inflight,
    )


@app.command()
def demo() -> int:
    """Answer a small batch with a real small model."""
    from vbatch.cli.demo import demo as run

    return run()
