"""Read a form with a file as it comes in: nothing is spooled, memory is flat, a slow client ends.

Starlette's own ``request.form()`` writes the file into the folder for temporary files first, which is often memory, and
then it is copied: twice the disk, half the speed (measured).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from vbatch.server.context import Context
from vbatch.server.errors import ApiError

SILENCE = timedelta(seconds=60)  # the longest between two pieces of a body
SLOWEST = 1024  # bytes per second, on average after the first minute
_PIECE = 1 << 20  # bytes
_FIELD = 64 << 10  # bytes of a field that is no file
_FIELDS = 64
_DRAINED = 32 << 20  # bytes that are read on after an error, so that the client gets to see it
_DRAIN_TIME = 5.0  # seconds


@dataclass(slots=True)
class Form:
    """The fields of a form but its file, of which ``filename`` is what the client calls it; None before it came."""

    fields: dict[str, str] = field(default_factory=dict)
    filename: str | None = None


class _Parts:
    """Takes what the parser finds: the file goes to ``write``, the rest into the form."""

    def __init__(self, file_field: str, write: Callable[[bytes], None]) -> None:
        self.form = Form()
        self.ended = False
        self._file_field = file_field
        self._write = write
        self._header = b""
        self._value = b""
        self._disposition = b""
        self._name = ""
        self._text = bytearray()
        self._is_file = False
        self._parts = 0

    def callbacks(self) -> dict[str, Callable[..., None]]:
        """Return what the parser calls."""
        names = ("part_begin", "part_data", "part_end", "header_field", "header_value", "header_end")
        return {f"on_{name}": getattr(self, name) for name in (*names, "headers_finished", "end")}

    def part_begin(self) -> None:
        self._parts += 1
        if self._parts > _FIELDS:
            raise ApiError(400, f"A form has at most {_FIELDS} fields.", close=True)
        self._disposition = b""
        self._text = bytearray()

    def header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = self._value
        self._header, self._value = b"", b""

    def headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._name = options.get(b"name", b"").decode(errors="replace")
        self._is_file = self._name == self._file_field
        if self._is_file:
            if self.form.filename is not None:
                raise ApiError(400, f"The form has more than one '{self._file_field}'.", close=True)
            self.form.filename = options.get(b"filename", b"").decode(errors="replace")

    def part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._write(data[start:end])
        elif len(self._text) + end - start > _FIELD:
            raise ApiError(400, f"The field '{self._name[:64]}' is too long.", close=True)
        else:
            self._text += data[start:end]

    def part_end(self) -> None:
        if not self._is_file:
            self.form.fields[self._name] = self._text.decode(errors="replace")

    def end(self) -> None:
        self.ended = True


def announced(request: Request, *, file_field: str, most: int) -> int:
    """Return how many bytes a form is to have, 0 where the client does not say. Raises ApiError for too many."""
    size = int(request.headers.get("content-length", 0))
    if size > most + _PIECE:
        raise ApiError(413, f"The file is larger than {most:,} bytes.", param=file_field, close=True)
    return size


async def receive(
    request: Request, context: Context, *, file_field: str, write: Callable[[bytes], None], most: int
) -> Form:
    """Read a form whose file has at most ``most`` bytes; its pieces go to ``write``, in a thread.

    Raises ApiError; what ``write`` raises comes through.
    """
    kind, options = parse_options_header(request.headers.get("content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise ApiError(400, "The request must be a form: multipart/form-data.", close=True)
    size = 0

    def bounded(data: bytes) -> None:
        nonlocal size
        size += len(data)
        if size > most:
            raise ApiError(413, f"The file is larger than {most:,} bytes.", param=file_field, close=True)
        write(data)

    parts = _Parts(file_field, bounded)
    try:
        parser = MultipartParser(boundary, parts.callbacks())  # type: ignore[arg-type]
        async for piece in _pieces(request):
            await context.in_files(parser.write, piece)
    except FormParserError as error:
        raise ApiError(400, f"The form is not valid: {error}", close=True) from None
    if not parts.ended:
        raise ApiError(400, "The form ends before its last boundary.", close=True)
    if parts.form.filename is None:
        raise ApiError(400, f"'{file_field}' is a required property", param=file_field)
    return parts.form


async def drain(request: Request) -> None:
    """Read on for a moment after an error: a client that is still sending would not see the answer."""
    with suppress(ClientDisconnect, TimeoutError, RuntimeError):
        async with asyncio.timeout(_DRAIN_TIME):
            left = _DRAINED
            async for block in request.stream():
                left -= len(block)
                if left < 0:
                    return


async def _pieces(request: Request) -> AsyncIterator[bytes]:
    """Yield the body in pieces that are worth a thread. Raises ApiError for a client that is too slow."""
    stream = request.stream().__aiter__()
    started = time.monotonic()
    held = bytearray()
    total = 0
    while True:
        try:
            async with asyncio.timeout(SILENCE.total_seconds()):
                block = await anext(stream, None)
        except TimeoutError:
            raise _too_slow() from None
        if block is None:
            break
        held += block
        total += len(block)
        elapsed = time.monotonic() - started
        if elapsed > SILENCE.total_seconds() and total / elapsed < SLOWEST:
            raise _too_slow()
        if len(held) >= _PIECE:
            yield bytes(held)
            held.clear()
    if held:
        yield bytes(held)


def _too_slow() -> ApiError:
    return ApiError(408, "The request came too slowly.", close=True)
