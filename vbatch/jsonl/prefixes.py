"""What a request begins with, as far as an engine's prefix cache can share it with other requests."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from hashlib import blake2b

import msgspec

LONGEST = 4096  # bytes of a prefix: some 1,000 tokens
AFTER = 1024  # of what follows a first message that is longer than that

_BEFORE = dict.fromkeys(("tools", "response_format", "instructions"))  # what a chat template puts first

_TEXT = ("messages", "prompt", "input")

_messages = msgspec.json.Decoder(list[msgspec.Raw]).decode


def of_all(requests: Sequence[Mapping[str, msgspec.Raw]], shapes: Collection[tuple[str, ...]]) -> list[bytes]:
    """Return what ``of`` does of each request; ``shapes`` are the names of their fields."""
    text = {next(filter(shape.__contains__, _TEXT), None) for shape in shapes}
    name = text.pop()
    if name is None or text or not all(map(_BEFORE.keys().isdisjoint, shapes)):
        return list(map(of, requests))
    texts = [bytes(fields[name]) for fields in requests]
    return texts if max(map(len, texts)) <= LONGEST else list(map(of, requests))


def of(fields: Mapping[str, msgspec.Raw]) -> bytes:
    """Return the leading bytes of a request: tools and format, then what it says; nothing where there is no text.

    Of a long first message (a system prompt, a document) a digest stands for the rest, so that what follows it counts.
    """
    name = next(filter(fields.__contains__, _TEXT), None)
    if name is None:
        return b""
    text = bytes(fields[name])
    if len(text) > LONGEST:
        text = _shortened(text)
    if _BEFORE.keys().isdisjoint(fields):
        return text
    before = (bytes(fields[name]) for name in _BEFORE if name in fields)
    return b"\n".join(_bounded(part) for part in before) + b"\n" + text


def _shortened(text: bytes) -> bytes:
    try:
        first = bytes(_messages(text)[0])
    except (msgspec.MsgspecError, IndexError):  # a text, not a list
        return text[:LONGEST]
    end = text.index(first) + len(first)
    return _bounded(text[:end]) + text[end : end + AFTER]


def _bounded(part: bytes) -> bytes:
    """Return a part as it is, or its beginning and its digest."""
    return part if len(part) <= AFTER else part[:AFTER] + blake2b(part, digest_size=16).digest()
