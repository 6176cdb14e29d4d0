"""The arguments and options that several commands share, and how their texts are read."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from vbatch.batches import Batch

OFFERED = 50  # batches on TAB: the newest ones


def batch_ids(incomplete: str) -> Iterator[tuple[str, str]]:
    """Yield the ids that TAB offers: those that begin like this, newest first, each with a few words about it.

    Whatever is wrong (no store yet, an unreachable database, a bad configuration) yields nothing: in the middle
    of a command line there is no good place for a message.
    """
    try:
        from vbatch import batches, config

        found = batches.newest_at_once(config.load().store_url, limit=OFFERED)
    except Exception:
        return
    if incomplete and "last".startswith(incomplete):
        yield "last", "the newest batch of this machine"
    for batch in found:
        if batch.id.startswith(incomplete):
            yield batch.id, _about(batch)
        elif incomplete and batch.name is not None and batch.name.startswith(incomplete):
            yield batch.name, _about(batch)


def statuses(incomplete: str) -> list[str]:
    """Return the statuses that TAB offers."""
    from vbatch.batches import STATUSES

    return [status for status in STATUSES if status.startswith(incomplete)]


def notify_names(incomplete: str) -> list[str]:
    """Return the commands of the configuration that TAB offers; none where it is not valid."""
    try:
        from vbatch import config

        return [name for name in config.load().notify if name.startswith(incomplete)]
    except Exception:
        return []


def _about(batch: Batch) -> str:
    """Describe a batch in words that no shell interprets."""
    words = [
        batch.status.replace("_", " "),
        f"{batch.counts.total} requests",
        batch.name or batch.model or "",
    ]
    return re.sub(r"[^\w .,-]", " ", ", ".join(word for word in words if word))[:80].strip()


BatchRef = Annotated[
    str,
    typer.Argument(
        metavar="ID",
        help="A batch id, any unique beginning or ending of one, a name, or last: the newest one.",
        autocompletion=batch_ids,
        show_default=False,
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON document.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Print the id alone.")]
QuietIds = Annotated[bool, typer.Option("--quiet", "-q", help="Print the ids alone, one per line.")]
BlockedLimit = Annotated[
    str,
    typer.Option(
        "--blocked-limit",
        metavar="TIME",
        help="Stop waiting, with exit 69, after this time with only blocked requests or files of other hosts left.",
    ),
]
ExitStatus = Annotated[
    bool, typer.Option("--exit-status", help="Exit with 5 unless every request of the batch succeeded.")
]
UserScope = Annotated[bool, typer.Option("--user", help="Your own service.  [default, unless you are root]")]
SystemScope = Annotated[bool, typer.Option("--system", help="A service of the machine.  [default as root]")]


def duration(text: str, option: str) -> timedelta:
    """Read an option that takes a time. Raises UsageError."""
    from vbatch.errors import UsageError
    from vbatch.text import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        raise UsageError(f"{option}: {error}") from None


def output_file(
    text: str | None, option: str, *, hint: str = "vbatch results ID prints what is finished"
) -> Path | None:
    """Read an option that names a file to write. Raises OutputPathError for ``-``, for a folder and for nothing."""
    from vbatch.errors import OutputPathError

    if text == "-":
        raise OutputPathError(
            f"{option} needs a file name: the file appears whole or not at all, which standard output cannot",
            hint=hint,
        )
    if text == "":
        raise OutputPathError(f"{option} names no file", hint=f"{option} answers.jsonl")
    if text is not None and text.endswith("/"):
        raise OutputPathError(f"{option} names a folder: {text}", hint=f"{option} {text}answers.jsonl")
    return None if text is None else Path(text)


def pairs(metadata: Sequence[str]) -> dict[str, str]:
    """Read ``--metadata K=V …``. Raises UsageError."""
    from vbatch.errors import UsageError

    read: dict[str, str] = {}
    for pair in metadata:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise UsageError(f"--metadata '{pair}' is not of the form KEY=VALUE", hint="--metadata run=17")
        pair.encode()  # a byte that is not UTF-8 ends the command here: no name of such bytes is stored
        read[key] = value
    return read


def fields(changes: Sequence[str]) -> dict[str, Any]:
    """Read ``--set KEY=VALUE …``: a value is JSON, or else a text. Raises UsageError."""
    import json

    from vbatch.errors import UsageError

    read: dict[str, Any] = {}
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals or not key:
            raise UsageError(f"--set '{change}' is not of the form KEY=VALUE", hint="--set max_tokens=4096")
        if key == "model":
            raise UsageError("--set does not change the model", hint="-m MODEL")
        try:
            read[key] = json.loads(value)
        except ValueError:
            read[key] = value
    return read


def check_vllm_flags(flags: Sequence[str]) -> None:
    """Raise UsageError for a word where vLLM's flags begin that is not a flag."""
    from vbatch.errors import UsageError

    if flags and not flags[0].startswith("-"):
        raise UsageError(
            f"unexpected argument '{flags[0]}'",
            hint="vLLM's own flags go after a double dash: vbatch run-worker -- --max-model-len 4096",
        )


def chosen_endpoints(engine: str | None, urls: Sequence[str]) -> tuple[str | None, Mapping[str, Any] | None]:
    """Return the engine and the endpoints that ``--engine`` and ``--url`` name. Raises UsageError."""
    from vbatch.config.endpoints import of_urls
    from vbatch.errors import UsageError

    if not urls:
        return engine, None
    if engine not in (None, "endpoint"):
        raise UsageError(f"--url is for the engine endpoint, not for {engine}", hint="--engine endpoint")
    try:
        return "endpoint", of_urls(tuple(urls))
    except ValueError as error:
        raise UsageError(f"--url: {error}") from None
