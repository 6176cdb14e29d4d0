"""The commands for the batches in the queue: list, status, watch, results, cancel, retry, delete."""

from __future__ import annotations

from typing import Annotated

import typer

from vbatch.cli.arguments import (
    BatchRef,
    BlockedLimit,
    ExitStatus,
    Json,
    Quiet,
    QuietIds,
    batch_ids,
    statuses,
)
from vbatch.cli.table_options import Fields, JoinColumn, JoinTable, LabelAgainst, LabelTemplate, Raw, To
from vbatch.cli.tables import app

__all__ = ["app"]


@app.command("list")
def list_(
    *,
    all_: Annotated[
        bool, typer.Option("--all", "-a", help="Show all batches, not only the newest 20.")
    ] = False,
    status: Annotated[
        str | None,
        typer.Option(
            "--status",
            metavar="STATUS",
            help="Only these: in_progress, completed, …; also queued (no worker has begun) and blocked.",
            autocompletion=statuses,
        ),
    ] = None,
    name: Annotated[
        str | None, typer.Option("--name", metavar="TEXT", help="Only batches of exactly this name.")
    ] = None,
    json: Json = False,
    quiet: QuietIds = False,
) -> None:
    """List batches, newest first."""
    from vbatch.cli.batch import list_batches

    list_batches(every=all_, status=status, name=name, json=json, quiet=quiet)


@app.command()
def status(*, batch: BatchRef, json: Json = False, quiet: Quiet = False) -> None:
    """Show a batch: its progress, its speed and its failures."""
    from vbatch.cli.batch import show_status

    show_status(batch, json=json, quiet=quiet)


@app.command()
def watch(
    *,
    batch: BatchRef,
    exit_status: ExitStatus = False,
    blocked_limit: BlockedLimit = "10m",
    json: Json = False,
    quiet: Quiet = False,
) -> int:
    """Follow a batch until it has ended.

    Ctrl-C ends the view alone: the batch continues.
    """
    from vbatch.cli.arguments import duration
    from vbatch.cli.watch import watch as run

    limit = duration(blocked_limit, "--blocked-limit")
    return run(batch, exit_status=exit_status, blocked_limit=limit, json=json, quiet=quiet)


@app.command()
def results(
    *,
    batch: BatchRef,
    errors: Annotated[
        bool, typer.Option("--errors", help="Print the failed requests instead of the answers.")
    ] = False,
    cut_off: Annotated[
        bool, typer.Option("--cut-off", help="Print only the answers that ended at the limit of tokens.")
    ] = False,
    retries: Annotated[
        bool,
        typer.Option("--with-retries", help="Of each request the best answer, its retries included."),
    ] = False,
    sample: Annotated[
        int | None,
        typer.Option("--sample", metavar="N", min=1, help="Print N lines chosen at random, to look at."),
    ] = None,
    to: To = None,
    join: JoinTable = None,
    on: JoinColumn = None,
    fields: Fields = None,
    raw: Raw = False,
    template: LabelTemplate = None,
    against: LabelAgainst = None,
    output: Annotated[
        str | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="Write to a file, whole or not at all; with --to label-studio to a new folder.",
        ),
    ] = None,
    json: Annotated[
        bool, typer.Option("--json", help="Print the batch object, which names its files.")
    ] = False,
) -> None:
    """Print the finished lines of a batch, at any time.

    They come in the order of the input file, and always as whole lines.

    With --to they are rows of one table, answers and failures together: custom_id, prompt, answer, status, error,
    tokens, model, and the fields of JSON answers. --to label-studio writes tasks, in which people correct or grade
    the answers.
    """
    from vbatch.batches import Selection
    from vbatch.cli.batch import results as run
    from vbatch.cli.label import label_options, label_results
    from vbatch.cli.results_table import check_options, write_results

    if errors and cut_off:
        raise typer.BadParameter("errors are no answers that could be cut off", param_hint="--cut-off")
    selection = Selection(errors=errors, cut_off=cut_off, sample=sample, retries=retries)
    if to == "label-studio" or template is not None or against is not None:
        given = {"--join": join, "--on": on, "--raw": raw, "--json": json}
        label_results(
            batch, selection, to, label_options(template, against, fields), given, output_path=output
        )
        return
    options = check_options(to, join=join, on=on, fields=fields, raw=raw, json=json)
    if options is None:
        run(batch, selection, output_path=output, json=json)
    else:
        write_results(batch, selection, options, output_path=output)


@app.command()
def show(
    *,
    batch: BatchRef,
    custom_id: Annotated[
        str, typer.Argument(metavar="CUSTOM_ID", help="The custom_id of a request.", show_default=False)
    ],
    json: Json = False,
) -> None:
    """Show one request of a batch and its answer, to read."""
    from vbatch.cli.show import show as run

    run(batch, custom_id, json=json)


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
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            metavar="MODEL",
            help="Use this model; also for the requests of a running batch whose model cannot be loaded.",
        ),
    ] = None,
    only: Annotated[
        str | None,
        typer.Option("--only", metavar="CODE", help="Only those that failed with this code: http_500, …"),
    ] = None,
    cut_off: Annotated[
        bool,
        typer.Option("--cut-off", help="The answers that ended at the limit of tokens, not the failures."),
    ] = False,
    changes: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="KEY=VALUE", help="Change a field of each body: max_tokens=4096; repeatable."
        ),
    ] = None,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Submit the failed requests of a batch as a new batch."""
    from vbatch.batches import RetryOptions
    from vbatch.cli.arguments import fields, output_file
    from vbatch.cli.batch import retry_batch

    options = RetryOptions(
        model=model,
        only=only,
        cut_off=cut_off,
        changes=fields(changes or []),
        output=output_file(output, "-o"),
    )
    retry_batch(batch, options, json=json, quiet=quiet)


@app.command()
def delete(
    *,
    batch: Annotated[
        str | None,
        typer.Argument(
            metavar="[ID]",
            help="A batch id, any unique beginning or ending of one, a name, or last: the newest one.",
            autocompletion=batch_ids,
            show_default=False,
        ),
    ] = None,
    ended_before: Annotated[
        str | None,
        typer.Option(
            "--ended-before", metavar="TIME", help="All batches that ended longer ago than this: 30d, 12h."
        ),
    ] = None,
    force: Annotated[
        bool,
        typer.Option("--force", help="Also if its files cannot be written: the folder is gone."),
    ] = False,
    json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Remove an ended batch from the store; its files stay."""
    from vbatch.cli.arguments import duration
    from vbatch.cli.batch import delete_batch, delete_old
    from vbatch.errors import UsageError

    if (batch is None) is (ended_before is None):
        raise UsageError("delete takes an ID, or --ended-before", hint="vbatch delete --ended-before 30d")
    if batch is not None:
        delete_batch(batch, force=force, json=json, quiet=quiet)
    elif ended_before is not None:
        delete_old(duration(ended_before, "--ended-before"), json=json, quiet=quiet)
