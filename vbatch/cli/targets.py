"""The files that a person asks for with -o."""

from __future__ import annotations

from pathlib import Path

from vbatch.errors import OutputPathError


def target(
    text: str | None, option: str, *, hint: str = "vbatch results ID prints what is finished"
) -> Path | None:
    """Read a file that is to be written. Raises OutputPathError for ``-``: what is written whole is no stream."""
    if text == "-":
        raise OutputPathError(
            f"{option} takes a file, and - is none: it is whole or not there, which standard output cannot be",
            hint=hint,
        )
    if text == "":
        raise OutputPathError(f"{option} names no file", hint=f"{option} answers.jsonl")
    if text is not None and text.endswith("/"):
        raise OutputPathError(f"{option} names a folder: {text}", hint=f"{option} {text}answers.jsonl")
    return None if text is None else Path(text)
