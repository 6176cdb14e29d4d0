"""JSON of strangers: decoded whatever its escapes are, its texts joined, encoded again in one line."""

from __future__ import annotations

import json
from typing import Any

import msgspec

_decode = msgspec.json.Decoder().decode
_encode = msgspec.json.Encoder().encode


def decode(document: bytes) -> Any:
    """Return a JSON document; half a surrogate pair, which no file can hold, becomes a question mark."""
    try:
        return _decode(document)
    except msgspec.DecodeError:
        return _plain(json.loads(document))


def decoded(text: str) -> Any:
    """Return what a text holds as JSON; None where it is not JSON."""
    try:
        return decode(text.encode())
    except ValueError:
        return None
    except RecursionError:
        return None


def dumps(document: object) -> str:
    """Return a document as one line of JSON."""
    return _encode(document).decode()


def content_text(content: Any) -> str | None:
    """Return the text of a message's content: a text, or the texts of its parts; JSON of anything else."""
    if content is None or isinstance(content, str):
        return content
    if isinstance(content, list):
        texts = [
            part["text"] for part in content if isinstance(part, dict) and isinstance(part.get("text"), str)
        ]
        if texts or not content:
            return "\n".join(texts)
    return dumps(content)


def _plain(document: Any) -> Any:
    match document:
        case str():
            return document.encode("utf-8", "replace").decode()
        case dict():
            return {_plain(name): _plain(value) for name, value in document.items()}
        case list():
            return [_plain(value) for value in document]
        case float() if document != document or document in (float("inf"), float("-inf")):  # noqa: PLR0124
            return None
    return document
