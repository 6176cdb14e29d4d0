"""Read JSON Lines as a table: every line is an object, whose keys are the columns of that row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec

from vbatch.errors import TableError

_decode = msgspec.json.Decoder().decode


def rows(lines: Iterator[str], name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Yield the objects, each with its line; blank lines are left out. Raises TableError."""
    for number, line in enumerate(lines, 1):
        if not (text := line.strip()):
            continue
        try:
            document = _decode(text)
        except (msgspec.MsgspecError, RecursionError) as fault:
            if number == 1 and text.startswith("["):
                raise _array(name) from None
            reason = str(fault).removeprefix("JSON is malformed: ")
            raise TableError(
                f"{name}, line {number:,}: this is not JSON: {reason}", hint="jq -c . FILE > lines.jsonl"
            ) from None
        if not isinstance(document, dict):
            if isinstance(document, list) and number == 1:
                raise _array(name)
            raise TableError(
                f"{name}, line {number:,}: not an object of JSON", hint='a row is: {"text": "…"}'
            )
        yield number, document


def _array(name: str) -> TableError:
    return TableError(
        f"{name} is one array of JSON, not one object per line", hint="jq -c '.[]' FILE > lines.jsonl"
    )
