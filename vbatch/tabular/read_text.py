"""Cut a stream of bytes into lines of text, one held at a time, whatever its encoding of Unicode."""

from __future__ import annotations

import codecs
import io
from collections.abc import Iterator
from typing import Protocol

LINE_LIMIT = 64 << 20  # bytes, as in a file of requests
_BLOCK = 256 << 10  # bytes
_LOOK = 4096  # bytes by which a table is recognised
_UTF8_BOM = b"\xef\xbb\xbf"


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """Return up to so many bytes, none at the end."""
        ...


class BadText(Exception):
    """A line is no text: which one, why, and the command that helps, for a file called FILE."""

    def __init__(self, line: int, what: str, hint: str) -> None:
        self.line = line
        self.what = what
        self.hint = hint
        super().__init__(what)


class Beginning:
    """A stream whose first bytes can be looked at before it is read."""

    def __init__(self, stream: Readable) -> None:
        first = stream.read(_LOOK)
        while 0 < len(first) < _LOOK and (more := stream.read(_LOOK - len(first))):
            first += more
        self.first = first
        self._left = first
        self._stream = stream

    def read(self, size: int) -> bytes:
        """Return up to so many bytes, none at the end."""
        if self._left:
            taken, self._left = self._left[:size], self._left[size:]
            return taken
        return self._stream.read(size)


def text_lines(stream: Beginning) -> Iterator[str]:
    """Yield the lines of UTF-8, or of UTF-16 that shows itself, with their line breaks. Raises BadText."""
    encoding = _utf16(stream.first)
    lines = io.BufferedReader(_Raw(stream if encoding is None else _Transcoded(stream, encoding)), _BLOCK)
    number = 0
    while line := lines.readline(LINE_LIMIT):
        number += 1
        if number == 1:
            line = line.removeprefix(_UTF8_BOM)
        if len(line) >= LINE_LIMIT:
            raise BadText(number, f"longer than {LINE_LIMIT >> 20} MiB", "file FILE")
        try:
            yield line.decode()
        except UnicodeDecodeError as error:
            raise BadText(
                number,
                f"not UTF-8 (at byte {error.start + 1} of the line)",
                "iconv -f WINDOWS-1252 -t UTF-8 FILE > utf8.csv",
            ) from None


def _utf16(first: bytes) -> str | None:
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if first[1:8:2] == bytes(4) or first[1:4:2] == bytes(2) == first[3:6:2]:
        return "utf-16-le"  # without a mark: the first characters are of ASCII, as those of a header are
    return "utf-16-be" if first[0:8:2] == bytes(4) else None


class _Transcoded:
    """UTF-16 as UTF-8."""

    def __init__(self, stream: Readable, encoding: str) -> None:
        self._stream = stream
        self._decoder = codecs.getincrementaldecoder(encoding)()
        self._encoding = encoding
        self._lines = 0
        self._ended = False

    def read(self, size: int) -> bytes:
        """Return the next bytes of UTF-8, none at the end. Raises BadText."""
        while not self._ended:
            block = self._stream.read(size)
            self._ended = not block
            try:
                text = self._decoder.decode(block, final=self._ended)
            except UnicodeDecodeError as error:
                good = error.object[: error.start].decode(error.encoding)
                raise BadText(
                    self._lines + good.count("\n") + 1,
                    f"not UTF-16 ({error.reason})",
                    f"iconv -c -f {self._encoding.upper()} -t UTF-8 FILE > utf8.csv   # leaves out what is not",
                ) from None
            self._lines += text.count("\n")
            if text:
                return text.encode()
        return b""


class _Raw(io.RawIOBase):
    """What Python's buffered readers read from."""

    def __init__(self, stream: Readable) -> None:
        self._stream = stream
        self._left = b""

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        """Fill the buffer as far as there is something."""
        block = self._left or self._stream.read(len(buffer))
        taken, self._left = block[: len(buffer)], block[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)
