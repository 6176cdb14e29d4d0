"""The command that turns a table into requests: make."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from vbatch.cli.app import app

__all__ = ["app"]


@app.command()
def make(
    *,
    table: Annotated[
        str,
        typer.Argument(
            metavar="TABLE|-",
            help="A csv, tsv, JSON Lines, Parquet or text file, also in gzip or zstd; - is stdin.",
            show_default=False,
        ),
    ],
    prompt: Annotated[
        str,
        typer.Option(
            "--prompt",
            metavar="TEMPLATE",
            help="What is asked: 'Translate: {text}' holds the row's column text; @FILE reads it from a file.",
            show_default=False,
        ),
    ],
    system: Annotated[
        str | None,
        typer.Option("--system", metavar="TEMPLATE", help="The system message, a template like --prompt."),
    ] = None,
    id_: Annotated[
        str | None,
        typer.Option(
            "--id", metavar="COLUMN", help="The column with the custom_ids. Default: the rows' numbers."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", metavar="MODEL", help="The model. Without it, submit -m names it."),
    ] = None,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", min=1, help="The most tokens of an answer.")
    ] = None,
    temperature: Annotated[
        float | None, typer.Option("--temperature", metavar="T", min=0, help="0 for the likeliest answer.")
    ] = None,
    schema: Annotated[
        str | None,
        typer.Option("--schema", metavar="FILE", help="A JSON schema that every answer follows."),
    ] = None,
    body: Annotated[
        str | None,
        typer.Option("--body", metavar="JSON", help="More fields of each body, as an object; or @FILE."),
    ] = None,
    image: Annotated[
        str | None,
        typer.Option(
            "--image",
            metavar="COLUMN",
            help="A column with an image per row: a path, beside TABLE, or a URL.",
        ),
    ] = None,
    url: Annotated[
        str,
        typer.Option("--url", metavar="PATH", help="Also /v1/completions, /v1/responses, /v1/embeddings."),
    ] = "/v1/chat/completions",
    kind: Annotated[
        Literal["csv", "tsv", "jsonl", "parquet", "text"] | None,
        typer.Option(
            "--format",
            help="What TABLE is, where its name does not show it. The lines of a text are the column line.",
        ),
    ] = None,
    separator: Annotated[
        str | None,
        typer.Option(
            "--separator", metavar="CHAR", help="Between the cells of a csv file. Default: by its first line."
        ),
    ] = None,
) -> None:
    """Print a request for each row of a table.

    vbatch make TABLE … | vbatch submit - stores them. In a template, {column} is the cell of that column, and
    {{ and }} are braces. If a row is wrong, the last line that is printed makes submit refuse them all.
    """
    from vbatch.cli.make import make as run

    run(
        table,
        prompt=prompt,
        system=system,
        id_=id_,
        model=model,
        max_tokens=max_tokens,
        temperature=temperature,
        schema=schema,
        body=body,
        image=image,
        url=url,
        kind=kind,
        separator=separator,
    )
