"""What was answered, of the body of an answer: its text, reasoning, tool calls, vector, and why it ended.

Each endpoint has its own shape; its fields show which it is, so that an answer of an unknown endpoint still
gives what it has.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from vbatch.tabular.documents import content_text, decode, dumps


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What an answer says. ``text`` is JSON where it is no text."""

    text: str | None = None
    reasoning: str | None = None
    tool_calls: str | None = None
    embedding: Sequence[float] | None = None
    finish_reason: str | None = None


def said(url: str, body: bytes) -> Said:  # noqa: PLR0911  (one for each shape)
    """Return what an answer of status 2xx says. Raises ValueError where it is not JSON."""
    answer = decode(body)
    match answer:
        case {"choices": [_, *_] as choices}:
            return _of_choices(choices)
        case {"output": list(items)}:
            return _of_items(items, answer)
        case {"content": list(blocks), "stop_reason": reason}:
            return _of_blocks(blocks, reason)
        case {"data": list(data)} if url != "/pooling":
            return _of_data(data)
        case {"embeddings": {"float": list(vectors)}}:
            return _of_vectors(vectors)
        case {"results": list(results)}:
            return Said(text=dumps([_rank(result) for result in results]))
        case {"text": str(text)} | {"prompt": str(text)}:
            return Said(text=text)
    return Said(text=dumps(answer))


def error_of(body: bytes) -> tuple[str | None, str | None]:
    """Return code and message of an error object, as far as it has them."""
    document = decode(body)
    error = document.get("error", document) if isinstance(document, dict) else document
    if isinstance(error, dict):
        code = error.get("code") if isinstance(error.get("code"), str) else None
        message = error.get("message")
        return code, message if isinstance(message, str) else dumps(error)
    return None, None if error is None else error if isinstance(error, str) else dumps(error)


def _of_choices(choices: Sequence[Any]) -> Said:
    """Return what the one choice says; of several the texts as a JSON list, and the rest of the first."""
    found = [_of_choice(choice) for choice in choices if isinstance(choice, dict)]
    if not found:
        return Said(text=dumps(choices))
    if len(found) == 1:
        return found[0]
    first = found[0]
    return Said(
        text=dumps([each.text for each in found]),
        reasoning=first.reasoning,
        tool_calls=first.tool_calls,
        finish_reason=first.finish_reason,
    )


def _of_choice(choice: Mapping[str, Any]) -> Said:
    message = choice.get("message")
    if not isinstance(message, dict):
        return Said(text=content_text(choice.get("text")), finish_reason=choice.get("finish_reason"))
    text = content_text(message.get("content"))
    return Said(
        text=text if text is not None else message.get("refusal"),
        reasoning=message.get("reasoning") or message.get("reasoning_content"),
        tool_calls=_calls(message.get("tool_calls")),
        finish_reason=choice.get("finish_reason"),
    )


def _of_items(items: Sequence[Any], answer: Mapping[str, Any]) -> Said:
    """Return what the items of a response say."""
    items = [item for item in items if isinstance(item, dict)]
    texts = [content_text(item.get("content")) for item in items if item.get("type", "message") == "message"]
    thought = [
        content_text(item.get("content") or item.get("summary"))
        for item in items
        if item.get("type") == "reasoning"
    ]
    details = answer.get("incomplete_details")
    return Said(
        text=_joined(texts),
        reasoning=_joined(thought),
        tool_calls=_calls([item for item in items if str(item.get("type")).endswith("_call")]),
        finish_reason=details.get("reason") if isinstance(details, dict) else answer.get("status"),
    )


def _of_blocks(blocks: Sequence[Any], reason: Any) -> Said:
    """Return what the blocks of a message say."""
    blocks = [block for block in blocks if isinstance(block, dict)]
    return Said(
        text=_joined([block.get("text") for block in blocks if block.get("type") == "text"]),
        reasoning=_joined([block.get("thinking") for block in blocks if block.get("type") == "thinking"]),
        tool_calls=_calls([block for block in blocks if block.get("type") == "tool_use"]),
        finish_reason=reason,
    )


def _of_data(data: Sequence[Any]) -> Said:
    """Return the vectors, the scores or the classes of an answer."""
    items = [item for item in data if isinstance(item, dict)]
    if not items or len(items) < len(data):
        return Said(text=dumps(data))
    for name in ("embedding", "score", "label"):
        values = [item.get(name) for item in items]
        if any(value is None for value in values):
            continue
        if name == "embedding" and all(isinstance(value, list) for value in values):
            return _of_vectors(values)
        return Said(text=_one_or_all(values))
    return Said(text=dumps(data))


def _of_vectors(vectors: Sequence[Any]) -> Said:
    """Return the vector of one input; of several all of them as JSON."""
    if len(vectors) == 1 and isinstance(vectors[0], list) and all(map(_is_number, vectors[0])):
        return Said(embedding=vectors[0])
    return Said(text=dumps(vectors))


def _rank(result: Any) -> Any:
    """Return a place of a ranking without the text of its document, which the request has."""
    return (
        {name: value for name, value in result.items() if name != "document"}
        if isinstance(result, dict)
        else result
    )


def _one_or_all(values: Sequence[Any]) -> str:
    return (
        dumps(values) if len(values) != 1 else values[0] if isinstance(values[0], str) else dumps(values[0])
    )


def _joined(texts: Sequence[str | None]) -> str | None:
    return "\n".join(text for text in texts if text) or None


def _calls(calls: Any) -> str | None:
    return dumps(calls) if calls else None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float)
