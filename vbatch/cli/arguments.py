"""The arguments and options that several commands share."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Annotated

import typer


def batch_ids(incomplete: str) -> Iterator[tuple[str, str]]:
    """Offer the batches of the store on TAB. Whatever is wrong with the store, TAB stays silent."""
    from vbatch.cli.completion import batch_ids as in_store

    return in_store(incomplete)


BatchRef = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="A batch id, or any unique beginning or ending of one.",
        autocompletion=batch_ids,
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the id alone.")]
QuietIds = Annotated[bool, typer.Option("--quiet", "-q", help="Print the ids alone, one a line.")]
ExitStatus = Annotated[
    bool, typer.Option("--exit-status", help="Exit with 5 unless every request of the batch succeeded.")
]
UserScope = Annotated[bool, typer.Option("--user", help="Your own service.  [default, unless you are root]")]
SystemScope = Annotated[bool, typer.Option("--system", help="A service of the machine.  [default as root]")]


def check_vllm_flags(flags: Sequence[str]) -> None:
    """Raise UsageError for a word that stands where vLLM's flags begin and is none."""
    from vbatch.errors import UsageError

    if flags and not flags[0].startswith("-"):
        raise UsageError(
            f"unexpected argument '{flags[0]}'",
            hint="vLLM's own flags go after a double dash: vbatch run-worker -- --max-model-len 4096",
        )
