"""Write the fields of a JSON body, and a file, as a form (``multipart/form-data``, RFC 7578)."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from typing import Any

import msgspec

_decode = msgspec.json.Decoder(dict[str, Any]).decode
_encode = msgspec.json.Encoder().encode
# RFC 7578 and browsers escape these in names.
_NAMES = str.maketrans({'"': "%22", "\r": "%0D", "\n": "%0A"})


def form(body: bytes, upload: bytes) -> tuple[bytes, str]:
    """Return a form with the fields of ``body`` and with ``upload`` as its ``file``, and its content type.

    As OpenAI's client writes them: a list is the field ``name[]`` once for each item, null is left out, an object is
    JSON.
    """
    boundary = secrets.token_hex(24)  # no file holds what is made after it
    line = f"--{boundary}\r\nContent-Disposition: form-data; name="
    parts = [
        f'{line}"{name.translate(_NAMES)}"\r\n\r\n'.encode() + value + b"\r\n"
        for name, value in _fields(_decode(body))
    ]
    head = f'{line}"file"; filename="audio"\r\nContent-Type: application/octet-stream\r\n\r\n'.encode()
    end = f"\r\n--{boundary}--\r\n".encode()
    return b"".join([*parts, head, upload, end]), f"multipart/form-data; boundary={boundary}"


def _fields(document: dict[str, Any]) -> Iterator[tuple[str, bytes]]:
    for name, value in document.items():
        match value:
            case None:
                continue
            case list():
                for item in value:
                    yield f"{name.removesuffix('[]')}[]", _text(item)
            case _:
                yield name, _text(value)


def _text(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else _encode(value)
