"""Know a file that vbatch wrote and nobody touched since: its first line is the checksum of the rest."""

from __future__ import annotations

import hashlib

_MARK = "# vbatch install-service sha256:"


def seal(body: str) -> str:
    """Put the checksum of the body in front of it."""
    return f"{_MARK}{_digest(body)}\n{body}"


def intact(text: str) -> bool:
    """Whether the text was sealed and is as it was."""
    first, _, body = text.partition("\n")
    return first == _MARK + _digest(body)


def _digest(body: str) -> str:
    return hashlib.sha256(body.encode()).hexdigest()
