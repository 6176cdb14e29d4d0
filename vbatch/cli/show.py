"""``show``: one request of a batch and its answer, to read: what was asked, what was answered, how it ended."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from vbatch import batches
from vbatch.batches import documents
from vbatch.cli.output import Output, Result
from vbatch.cli.startup import open_store
from vbatch.text import harmless, one_line


def show(reference: str, custom_id: str, *, json: bool) -> None:
    """Show one request and what became of it."""
    output = Output.of(json=json)
    with open_store(output, reads=True) as store:
        found = batches.show(store, reference, custom_id)
    document = documents.shown_document(found)
    output.show(Result(document=lambda: document, screen=lambda: _screen(document)))


def _screen(document: dict[str, Any]) -> RenderableType:
    head = Text(one_line(document["custom_id"], limit=100), style="bold")
    head.append(f"  line {document['line']:,} of {document['batch_id']}", style="dim")
    return Group(head, *_request(document["request"]), *_result(document["result"]))


def _request(body: dict[str, Any]) -> Iterator[RenderableType]:
    """Yield the messages, or whatever the body has in their place; then its other fields."""
    rest = {name: value for name, value in body.items() if name not in _PROMPTS}
    for name in _PROMPTS:
        given = body.get(name)
        if isinstance(given, list) and given and all(isinstance(item, dict) for item in given):
            for message in given:
                yield from _part(str(message.get("role", name)), message.get("content", message))
        elif given is not None:
            yield from _part(name, given)
    yield Text(", ".join(f"{name}: {_text(value)}" for name, value in rest.items()), style="dim")


def _result(line: dict[str, Any] | None) -> Iterator[RenderableType]:
    """Yield the answer, or why there is none."""
    if line is None:
        yield from _part("answer", "not finished yet", style="yellow")
        return
    if line["error"] is not None:
        yield from _part(line["error"]["code"], line["error"]["message"], style="red")
        return
    response = line["response"]
    body, status = response["body"], response["status_code"]
    if status >= 300:
        error = body.get("error", body) if isinstance(body, dict) else body
        message = error.get("message", error) if isinstance(error, dict) else error
        yield from _part(f"error {status}", message, style="red")
        return
    for choice in body.get("choices") or ():
        message = choice.get("message") or choice
        if reasoning := message.get("reasoning") or message.get("reasoning_content"):
            yield from _part("reasoning", reasoning, style="dim")
        yield from _part("answer", message.get("content", message.get("text", message)))
        if message.get("tool_calls"):
            yield from _part("tool calls", message["tool_calls"])
        yield Text(f"finish reason: {choice.get('finish_reason')}", style="dim")
    if not body.get("choices"):
        yield from _part("answer", body.get("output", body))


def _part(label: str, content: object, *, style: str = "") -> Iterator[RenderableType]:
    yield Text(f"\n{one_line(label, limit=40)}", style="cyan")
    yield Padding(Text(_text(content), style=style), (0, 0, 0, 2))


def _text(content: object) -> str:
    """Return a text, or the texts of its parts; anything else as JSON."""
    if isinstance(content, str):
        return harmless(content, keep="\n")
    if isinstance(content, list) and all(isinstance(part, dict) and "text" in part for part in content):
        return "\n".join(harmless(str(part["text"]), keep="\n") for part in content)
    return harmless(json.dumps(content, ensure_ascii=False), keep="\n")


_PROMPTS = ("instructions", "system", "messages", "prompt", "input", "query", "documents")
