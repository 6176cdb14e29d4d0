"""The body of a made request at each endpoint: where the prompt stands, and how its limits are called."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from vbatch.errors import UsageError

CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"
RESPONSES, EMBEDDINGS = "/v1/responses", "/v1/embeddings"
_TYPES = ("object", "array", "string", "number", "integer", "boolean", "null")
_KEYWORDS = frozenset(
    {"type", "properties", "enum", "const", "anyOf", "oneOf", "allOf", "$ref", "items", "pattern"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """An endpoint: the field of the prompt, and the names of other fields; None where it has no such field."""

    prompt: str
    ask: Callable[[str, str | None, str | None], dict[str, Any]]
    max_tokens: str | None = "max_tokens"
    temperature: bool = True
    schema: Callable[[dict[str, Any]], dict[str, Any]] | None = None
    system: bool = False
    image: bool = False


def _chat(prompt: str, system: str | None, image: str | None) -> dict[str, Any]:
    content: str | list[dict[str, Any]] = prompt
    if image is not None:
        content = [{"type": "image_url", "image_url": {"url": image}}, {"type": "text", "text": prompt}]
    rules = [] if system is None else [{"role": "system", "content": system}]
    return {"messages": [*rules, {"role": "user", "content": content}]}


def _responses(prompt: str, system: str | None, image: str | None) -> dict[str, Any]:
    asked: str | list[dict[str, Any]] = prompt
    if image is not None:
        content = [{"type": "input_image", "image_url": image}, {"type": "input_text", "text": prompt}]
        asked = [{"role": "user", "content": content}]
    return {"input": asked} if system is None else {"instructions": system, "input": asked}


def _response_format(schema: dict[str, Any]) -> dict[str, Any]:
    return {"response_format": {"type": "json_schema", "json_schema": schema}}


_KINDS = {
    CHAT: _Kind(prompt="messages", ask=_chat, schema=_response_format, system=True, image=True),
    COMPLETIONS: _Kind(
        prompt="prompt", ask=lambda prompt, _system, _image: {"prompt": prompt}, schema=_response_format
    ),
    RESPONSES: _Kind(
        prompt="input",
        ask=_responses,
        max_tokens="max_output_tokens",
        schema=lambda schema: {"text": {"format": {"type": "json_schema"} | schema}},
        system=True,
        image=True,
    ),
    EMBEDDINGS: _Kind(
        prompt="input",
        ask=lambda prompt, _system, _image: {"input": prompt},
        max_tokens=None,
        temperature=False,
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What the bodies of all rows share."""

    url: str
    model: str | None
    kind: _Kind
    fields: Mapping[str, Any]

    def of(self, prompt: str, *, system: str | None, image: str | None) -> dict[str, Any]:
        """Return the body of one row."""
        model = {} if self.model is None else {"model": self.model}
        return {**model, **self.kind.ask(prompt, system, image), **self.fields}


def body_of(
    url: str,
    *,
    model: str | None,
    max_tokens: int | None,
    temperature: float | None,
    schema: dict[str, Any] | None,
    more: Mapping[str, Any],
) -> Body:
    """Return what all bodies share. Raises UsageError for an endpoint, or a field that it does not have.

    So it does for a ``schema`` that describes nothing, and for values that JSON cannot hold.
    """
    kind = _KINDS.get(url)
    if kind is None:
        path = url.rstrip("/")
        near = [known for known in _KINDS if path and known.endswith(path)]
        near = near or difflib.get_close_matches(url, _KINDS, n=1, cutoff=0.4)
        raise UsageError(
            f"requests for {url!r} cannot be made of a table; --url takes {', '.join(_KINDS)}",
            hint=f"--url {near[0]}" if near else None,
        )
    fields: dict[str, Any] = {}
    if max_tokens is not None:
        if kind.max_tokens is None:
            raise UsageError(f"{url} takes no --max-tokens")
        fields[kind.max_tokens] = max_tokens
    if temperature is not None:
        if not kind.temperature:
            raise UsageError(f"{url} takes no --temperature")
        fields["temperature"] = temperature
    if schema is not None:
        if kind.schema is None:
            raise UsageError(f"{url} takes no --schema")
        _check_schema(schema["schema"])
        fields |= kind.schema(schema)
    body = Body(url=url, model=model, kind=kind, fields=fields | dict(more))
    check_json({"model": model, **body.fields})
    return body


def _check_schema(schema: Mapping[str, Any]) -> None:
    """Refuse what is no JSON schema: an engine takes it for one that allows everything."""
    kind = schema.get("type")
    unknown = [each for each in (kind if isinstance(kind, list) else [kind]) if each not in (None, *_TYPES)]
    if unknown:
        raise UsageError(
            f"the schema's type {unknown[0]!r} is not one of {', '.join(_TYPES)}",
            hint='{"type": "object", …}',
        )
    if _KEYWORDS.isdisjoint(schema):
        raise UsageError(
            "the schema describes no answer: it has no type, properties, enum, …",
            hint='{"type": "object", "properties": {"label": {"type": "string"}}}',
        )


def check_json(fields: Mapping[str, Any]) -> None:
    """Raise UsageError for what JSON has no form for: NaN, half a surrogate pair, an object of Python."""
    for name, value in fields.items():
        try:
            json.dumps([name, value], allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError):
            raise UsageError(
                f"the field {name!r} holds a value that JSON cannot hold, such as NaN or half a character"
            ) from None


def check_fields(body: Body, *, system: bool, image: bool) -> None:
    """Raise UsageError for parts that the endpoint does not have, and for a --body that replaces the prompt."""
    if system and not body.kind.system:
        raise UsageError(f"{body.url} takes no --system", hint="put it into --prompt")
    if image and not body.kind.image:
        raise UsageError(f"{body.url} takes no --image", hint=f"--url {CHAT}")
    if body.kind.prompt in body.fields:
        raise UsageError(
            f"--body sets {body.kind.prompt!r}, which --prompt makes", hint="leave it out of --body"
        )
