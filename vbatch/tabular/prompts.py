"""What was asked, of the body of a request: the messages, the last text of the user, the schema of the answer."""

from __future__ import annotations

import json
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

from vbatch.tabular.documents import content_text, decode, dumps

Message = dict[str, Any]

# Where a body has what was asked, if not in messages.
_PROMPTS = ("prompt", "input", "query", "text_1", "queries", "texts", "file_url", "data_1")


def prompt_of(body: bytes) -> str | None:
    """Return the last text of the user, or what else was asked; JSON where it is no text."""
    request = decode(body)
    if not isinstance(request, dict):
        return None
    conversation = request.get("messages")
    if conversation is None and isinstance(request.get("input"), list):
        conversation = request["input"]
    if isinstance(conversation, list) and conversation and isinstance(conversation[0], dict):
        asked = [each for each in conversation if isinstance(each, dict) and each.get("role") == "user"]
        return content_text((asked or conversation)[-1].get("content"))
    for name in _PROMPTS:
        if (given := request.get(name)) is not None:
            return given if isinstance(given, str) else _only(given)
    return None if conversation is None else dumps(conversation)


def _only(given: Any) -> str:
    """Return the text of a list with one text in it; JSON of anything else."""
    return (
        given[0]
        if isinstance(given, list) and len(given) == 1 and isinstance(given[0], str)
        else dumps(given)
    )


def messages_of(body: bytes) -> list[Message] | None:
    """Return the conversation that a request asks to be continued, in the shape of chats; None where it is none.

    Of responses the instructions, of messages the system prompt are its first message. A bare prompt is a message
    of the user.
    """
    request = decode(body)
    if not isinstance(request, dict):
        return None
    conversation = request.get("messages")
    if conversation is None:
        given = request.get("input", request.get("prompt"))
        conversation = [{"role": "user", "content": given}] if isinstance(given, str) else given
    if not isinstance(conversation, list) or not conversation or not all(map(_is_message, conversation)):
        return None
    first = request.get("instructions") or request.get("system")
    return [*([{"role": "system", "content": content_text(first)}] if first else []), *conversation]


def _is_message(part: object) -> bool:
    return isinstance(part, dict) and isinstance(part.get("role"), str)


class _Named(msgspec.Struct, gc=False):
    schema: Raw | UnsetType = UNSET


class _Format(msgspec.Struct, gc=False):
    json_schema: _Named | UnsetType = UNSET
    schema: Raw | UnsetType = UNSET


class _Text(msgspec.Struct, gc=False):
    format: _Format | None = None


class _Structured(msgspec.Struct, gc=False):
    json: Raw | UnsetType = UNSET


class _WithSchema(msgspec.Struct, gc=False):
    response_format: _Format | None = None
    text: _Text | None = None
    structured_outputs: _Structured | None = None


_decode_schema = msgspec.json.Decoder(_WithSchema).decode


def schema_of(body: bytes) -> bytes | None:
    """Return the JSON schema that a request asks its answer to follow, as it is written there; None without one."""
    try:
        request = _decode_schema(body)
    except msgspec.DecodeError:
        return None
    found: Raw | UnsetType = UNSET
    if request.response_format is not None:
        named = request.response_format.json_schema
        found = request.response_format.schema if isinstance(named, UnsetType) else named.schema
    elif request.text is not None and request.text.format is not None:
        found = request.text.format.schema
    elif request.structured_outputs is not None:
        found = request.structured_outputs.json
    return None if isinstance(found, UnsetType) else bytes(found)


def metadata_of(body: bytes) -> dict[str, str]:
    """Return the metadata of a request; values that are no text as JSON."""
    request = decode(body)
    given = request.get("metadata") if isinstance(request, dict) else None
    if not isinstance(given, dict):
        return {}
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in given.items()}
