"""``make``: print the requests of a table so that no part of them can be taken for the whole.

The last bytes of what was printed are held back until more follows. So whatever ends the command, a kill too, the
last line is cut off, which ``submit`` refuses. Where the command can, it says why instead, in a line of its own.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, BinaryIO

from vbatch import batches
from vbatch.batches import Format, MakeOptions
from vbatch.batches.make import read_file
from vbatch.cli.output import Output
from vbatch.cli.submit import input_file
from vbatch.errors import UsageError, VbatchError
from vbatch.protocol import incomplete_line
from vbatch.text import count

_BLOCK = 64 << 10  # bytes printed at once
_HELD = 2  # bytes: the end of a line, without which it is no JSON


def make(
    table: str,
    *,
    prompt: str,
    id_: str | None,
    schema: str | None,
    body: str | None,
    kind: str | None,
    **others: Any,
) -> None:
    """Print the request of each row, and on stderr how many those are."""
    lines = _Lines(sys.stdout.buffer)
    made = 0
    try:
        options = MakeOptions(
            prompt=prompt,
            id=id_,
            schema=None if schema is None else Path(schema),
            body={} if body is None else _body(body),
            kind=None if kind is None else Format(kind),
            **others,
        )
        source = input_file(table, what="rows", example="vbatch make - --prompt '{text}' < table.csv")
        for line in batches.make(source, options):
            lines.add(line)
            made += 1
        lines.end()
    except BrokenPipeError:
        raise
    except BaseException as error:
        if not sys.stdout.isatty():
            lines.fail(_reason(error))
        raise
    Output().note(f"{count(made, 'request')} of {source.name}")


class _Lines:
    """Lines on their way out, of which the last is never whole before the end."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._pending: list[bytes] = []
        self._size = 0

    def add(self, line: bytes) -> None:
        """Print a line, but for its last bytes."""
        self._pending.append(line)
        self._size += len(line)
        if self._size >= _BLOCK:
            block = b"".join(self._pending)
            self._stream.write(block[:-_HELD])
            self._pending = [block[-_HELD:]]
            self._size = _HELD

    def end(self) -> None:
        """Print what is left: all lines are whole."""
        self._stream.write(b"".join(self._pending))
        self._pending = []
        self._stream.flush()

    def fail(self, reason: str) -> None:
        """Print what is left and a line that makes everything before it invalid."""
        try:
            self._pending.append(incomplete_line(reason))
            self.end()
        except OSError:  # a full disk, a closed pipe: then the last line stays cut off
            pass


def _reason(error: BaseException) -> str:
    match error:
        case VbatchError():
            return error.message
        case KeyboardInterrupt():
            return "vbatch make was interrupted"
        case _:
            return f"vbatch make failed: {type(error).__name__}"


def _body(text: str) -> dict[str, Any]:
    """Read ``--body``. Raises UsageError, InputUnreadable."""
    if text.startswith("@"):
        text = read_file(Path(text[1:]), "--body")
    try:
        document = json.loads(text)
    except ValueError as error:
        raise UsageError(f"--body is not JSON: {error}", hint="--body '{\"top_p\": 0.9}'") from None
    if not isinstance(document, dict):
        raise UsageError("--body is not an object of JSON", hint="--body '{\"top_p\": 0.9}'")
    return document
