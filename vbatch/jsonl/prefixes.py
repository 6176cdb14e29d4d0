"""What a request begins with, as far as an engine's prefix cache can share it with other requests."""

from __future__ import annotations

from hashlib import blake2b

import msgspec

from vbatch.protocol import BodyHead

LONGEST = 4096  # bytes of a prefix: some 1,000 tokens
AFTER = 1024  # of what follows a first message that is longer than that

_messages = msgspec.json.Decoder(list[msgspec.Raw]).decode


def of(head: BodyHead) -> bytes:
    """Return the leading bytes of a request: tools and format, then what it says; nothing where there is no text.

    Of a long first message (a system prompt, a document) a digest stands for the rest, so that what follows it counts.
    """
    said = head.messages or head.prompt or head.input
    if not said:
        return b""
    text = bytes(said)
    if len(text) > LONGEST:
        text = _shortened(text)
    if head.tools or head.response_format or head.instructions:
        before = (bytes(part) for part in (head.tools, head.response_format, head.instructions) if part)
        return b"\n".join(_bounded(part) for part in before) + b"\n" + text
    return text


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
