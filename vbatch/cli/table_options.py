"""The options of ``results --to`` and of ``label``, and what they are read as."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from vbatch.cli.arguments import batch_ids

To = Annotated[
    Literal["csv", "jsonl", "parquet", "text", "sft", "label-studio"] | None,
    typer.Option("--to", help="Write one table: a row for each finished request."),
]
JoinTable = Annotated[
    str | None,
    typer.Option(
        "--join",
        metavar="TABLE",
        help="Put the columns of this table (csv, tsv, jsonl, parquet) before the others.",
    ),
]
JoinColumn = Annotated[
    str | None,
    typer.Option(
        "--on",
        metavar="COLUMN",
        help="The column of TABLE that holds the custom_id. Default: custom_id, else the row's number.",
    ),
]
Fields = Annotated[
    str | None,
    typer.Option(
        "--fields",
        metavar="A,B",
        help="Columns of JSON answers. Default: those of the requests' own schema, if they share one.",
    ),
]
Raw = Annotated[
    bool,
    typer.Option("--raw", help="Leave cells as they are, also those that a spreadsheet would run."),
]


LabelTemplate = Annotated[
    Literal["correct", "grade", "classify", "pairwise"] | None,
    typer.Option("--template", help="What people do with the answers in Label Studio.  [default: correct]"),
]
LabelAgainst = Annotated[
    str | None,
    typer.Option(
        "--against",
        metavar="ID",
        help="The other batch, for --template pairwise.",
        autocompletion=batch_ids,
    ),
]
LabelUrl = Annotated[
    str | None,
    typer.Option(
        "--url", metavar="URL", help="Where Label Studio is. Default: label_studio_url.", show_default=False
    ),
]


def names(text: str | None) -> tuple[str, ...]:
    """Read a list of names with commas between them."""
    return () if text is None else tuple(part.strip() for part in text.split(","))
