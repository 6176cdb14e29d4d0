"""What the command line looks like: the program itself, and ``submit``.

Only Typer is imported here; a command imports what it needs when it runs, so that ``--help`` and TAB are
quick. A command returns its exit code, None for 0.
"""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from vbatch.cli.arguments import BlockedLimit, Json, Quiet, batch_ids, notify_names

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
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE...|-",
            help="A JSONL file, one request per line, also in gzip or zstd; of several, each a batch; - is stdin.",
            show_default=False,
        ),
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
    dedupe: Annotated[
        bool,
        typer.Option("--dedupe", help="Run identical requests of temperature 0, or with a seed, once."),
    ] = False,
    skip_invalid: Annotated[
        bool,
        typer.Option(
            "--skip-invalid", help="Leave out the lines that are not valid, and write them beside FILE."
        ),
    ] = False,
    strict: Annotated[
        bool, typer.Option("--strict", help="Refuse requests with fields that the engine ignores.")
    ] = False,
    order: Annotated[
        Literal["prefix", "file"],
        typer.Option("--order", help="Work on requests that begin alike together, or as they stand in FILE."),
    ] = "prefix",
    notify: Annotated[
        str | None,
        typer.Option(
            "--notify",
            metavar="NAME|URL",
            help="Notify this command of the configuration, or URL, of the end.",
            autocompletion=notify_names,
        ),
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until the batch has ended; exit 5 if a request failed.")
    ] = False,
    blocked_limit: BlockedLimit = "10m",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check the file, estimate its tokens and time, store nothing.")
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Check a file of requests, store it, print the batch id.

    A batch is accepted whole or refused whole: if any line is wrong, every wrong line is named and nothing
    is stored.

    --reuse is for an edited file: a request that was answered before, with the same custom_id and a body of the
    same bytes, keeps its answer; only the others run.

    With --dedupe every request still has a line of its own: at the end it gets the outcome of the identical one.
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
        skip_invalid=skip_invalid,
        strict=strict,
        order=order,
        notify=notify,
        dedupe=dedupe,
    )
    return run(
        files,
        options,
        wait=wait,
        blocked_limit=duration(blocked_limit, "--blocked-limit"),
        dry_run=dry_run,
        json=json,
        quiet=quiet,
    )
