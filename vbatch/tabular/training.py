"""Examples for training, of answered requests: conversations that end with the answer, or prompt and completion."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from vbatch.tabular.documents import decode
from vbatch.tabular.prompts import messages_of
from vbatch.tabular.record import Record

_PLAIN = "/v1/completions"
Example = dict[str, Any]


def example_of(request: bytes, record: Record) -> Example | None:
    """Return the example that an answered request is, as trainers read it; None where it is none.

    A chat is ``{"messages": […]}``, a bare completion ``{"prompt", "completion"}``. Reasoning is left out.
    """
    if record.answer is None and record.tool_calls is None:
        return None
    if record.endpoint == _PLAIN:
        plain = record.prompt is not None and record.answer is not None
        return {"prompt": record.prompt, "completion": record.answer} if plain else None
    messages = messages_of(request)
    if messages is None:
        return None
    answer: Example = {"role": "assistant", "content": record.answer}
    if record.tool_calls is not None:
        answer["tool_calls"] = decode(record.tool_calls.encode())
    return conversation(messages, answer)


def conversation(messages: Sequence[Example], answer: Example) -> Example:
    """Return a conversation that ends with an answer."""
    return {"messages": [*messages, answer]}
