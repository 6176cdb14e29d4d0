"""The commands ``label push`` and ``label pull``."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from vbatch.cli.arguments import BatchRef, Json
from vbatch.cli.server import app
from vbatch.cli.table_options import Fields, LabelAgainst, LabelTemplate, LabelUrl

__all__ = ["app"]

label = typer.Typer(
    help="Have people correct answers in Label Studio.",
    no_args_is_help=True,
    rich_markup_mode=None,
)
app.add_typer(label, name="label")


@label.command("push")
def label_push(
    *,
    batch: BatchRef,
    project: Annotated[
        str,
        typer.Option(
            "--project",
            metavar="N|new",
            help="The number of a project; new: one for this batch and template, made where it is missing.",
            show_default=False,
        ),
    ],
    url: LabelUrl = None,
    template: LabelTemplate = None,
    against: LabelAgainst = None,
    fields: Fields = None,
    retries: Annotated[
        bool, typer.Option("--with-retries", help="Of each request the best answer, its retries included.")
    ] = False,
    json: Json = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Print the number of the project alone.")
    ] = False,
) -> None:
    """Push the answers of a batch to Label Studio, for people to correct.

    The same command again continues a push that was interrupted, and adds what was finished since: no answer is there
    twice. The token is read from VBATCH_LABEL_STUDIO_TOKEN, or from the file label_studio_token_file.
    """
    from vbatch.cli.label import label_options, push_batch

    push_batch(
        batch,
        label_options(template, against, fields),
        url=url,
        project=project,
        retries=retries,
        json=json,
        quiet=quiet,
    )


@label.command("pull")
def label_pull(
    *,
    project: Annotated[
        str, typer.Option("--project", metavar="N", help="The number of a project.", show_default=False)
    ],
    url: LabelUrl = None,
    form: Annotated[
        Literal["corrected", "sft", "preference"] | None,
        typer.Option(
            "--to",
            help="Write all that is known, conversations for training, or better and worse answers.  "
            "[default: corrected]",
        ),
    ] = None,
    output: Annotated[
        str | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write to a file, whole or not at all."),
    ] = None,
) -> None:
    """Write what people annotated in a project.

    One line per task, with the custom_id of its request.
    """
    from vbatch.cli.label import pull_project

    pull_project(project, url=url, form=form, output_path=output)
