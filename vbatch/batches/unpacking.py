"""Read compressed input as it is: gzip and zstd are known by their first bytes, in a file and in a pipe."""

from __future__ import annotations

import gzip
import zlib
from typing import IO, Any, Protocol, cast

from vbatch.errors import ConfigError, InputUnreadable

SUFFIXES = (".gz", ".gzip", ".zst", ".zstd")
GZIP, ZSTD = "gzip", "zstd"  # also the names of the commands that unpack them
_MAGIC = 4  # bytes
_FEED = (
    2 << 10
)  # bytes unpacked at once: even if they are made to grow as far as they can, they become 64 MiB
_BLOCK = 256 << 10  # bytes of zstd read at once


class Readable(Protocol):
    """What bytes are read from."""

    def read(self, size: int, /) -> bytes:
        """Return up to so many bytes, none at the end."""
        ...


class _Rejoined:
    """A stream whose first bytes were read already."""

    def __init__(self, first: bytes, rest: Readable) -> None:
        self._first = first
        self._rest = rest

    def read(self, size: int = -1) -> bytes:
        """Return the first bytes, then what follows."""
        if not self._first:
            return self._rest.read(size)
        if 0 <= size <= len(self._first):
            taken, self._first = self._first[:size], self._first[size:]
            return taken
        first, self._first = self._first, b""
        return first + self._rest.read(size - len(first) if size >= 0 else -1)


def unpacked(stream: Readable, name: str) -> tuple[Readable, str | None]:
    """Return the text of a stream, unpacked where it is compressed, and with what it is.

    Raises ConfigError without the package for zstd.
    """
    first = stream.read(_MAGIC)
    while 0 < len(first) < _MAGIC and (more := stream.read(_MAGIC - len(first))):
        first += more
    whole = _Rejoined(first, stream)
    if first.startswith(b"\x1f\x8b"):
        return _Checked(gzip.GzipFile(fileobj=cast("IO[bytes]", whole), mode="rb"), name, GZIP), GZIP
    skippable = (
        first[1:] == b"\x2a\x4d\x18" and first[0] >> 4 == 5
    )  # a frame without text, as pzstd begins with
    if first == b"\x28\xb5\x2f\xfd" or skippable:
        return _Checked(_Zstd(whole), name, ZSTD), ZSTD
    return whole, None


class _Zstd:
    """The text of frames of zstd. The package's own reader takes a frame that is cut off for a whole one."""

    def __init__(self, stream: Readable) -> None:
        try:
            import zstandard
        except ImportError:
            raise ConfigError(
                "the input is compressed with zstd, and the package for that is not installed",
                hint="pip install 'vbatch[zstd]', or: zstd -d FILE",
            ) from None
        self._stream = stream
        self._decompressor = zstandard.ZstdDecompressor()
        self._frame: Any = None  # the one that has begun and not ended
        self._packed = memoryview(b"")
        self._text = bytearray()

    def read(self, size: int) -> bytes:
        """Return up to so many bytes of text, none at the end. Raises EOFError within a frame."""
        while len(self._text) < size and self._feed():
            pass
        taken = bytes(self._text[:size])
        del self._text[:size]
        return taken

    def _feed(self) -> bool:
        """Unpack a little more; return False at the end."""
        if not self._packed:
            self._packed = memoryview(self._stream.read(_BLOCK))
        if not self._packed:
            if self._frame is not None:
                raise EOFError
            return False
        if self._frame is None:
            self._frame = self._decompressor.decompressobj()
        piece = self._packed[:_FEED]
        self._text += self._frame.decompress(piece)
        used = len(piece)
        if self._frame.eof:
            used -= len(self._frame.unused_data)
            self._frame = None
        self._packed = self._packed[used:]
        return True


class _Checked:
    """Unpacked data whose faults are reported as the input's."""

    def __init__(self, stream: Readable, name: str, kind: str) -> None:
        self._stream = stream
        self._name = name
        self._kind = kind
        self._done = 0

    def read(self, size: int) -> bytes:
        """Return the next bytes. Raises InputUnreadable for what is damaged or cut off."""
        try:
            block = self._stream.read(size)
        except InputUnreadable:
            raise
        except EOFError:
            raise self._damaged("ends too early") from None
        except (OSError, zlib.error) as error:
            raise self._damaged(f"is damaged ({error})") from None
        except Exception as error:  # zstandard's own, which is no OSError
            raise self._damaged(f"is damaged ({error})") from None
        self._done += len(block)
        return block

    def _damaged(self, how: str) -> InputUnreadable:
        return InputUnreadable(
            f"the {self._kind} data of {self._name} {how}, after {self._done:,} bytes of text",
            hint="nothing was stored; copy or compress the file again",
        )
