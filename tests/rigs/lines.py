"""Read and check bytes as ``submit`` does."""

from __future__ import annotations

import io
import json
from typing import Any

from vbatch.jsonl import LineReader, Validator
from vbatch.protocol import BatchError


def line(custom_id: Any = "a", **changes: Any) -> bytes:
    """One good line, but for the changes; a value of None leaves the key out."""
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}
    document = {
        "custom_id": custom_id,
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": body,
    } | changes
    return json.dumps({key: value for key, value in document.items() if value is not None}).encode() + b"\n"


def checked(data: bytes, *, model: str | None = None, **reader: Any) -> tuple[list[bytes], list[BatchError]]:
    """Return the bodies that were accepted, and the bad lines."""
    lines = LineReader(io.BytesIO(data), **reader)
    validator = Validator(model=model)
    bodies = [bytes(found[0].body) for number, text in lines if (found := validator.check(number, text))]
    validator.finish(cut_off=lines.cut_off)
    return bodies, validator.defects.shown


def codes(data: bytes, **options: Any) -> list[tuple[int | None, str]]:
    """Return the line and the code of each bad line."""
    return [(defect.line, defect.code) for defect in checked(data, **options)[1]]
