"""The answers of the echo engine: OpenAI's response objects, filled with the request's own text.

The same body always gets the same bytes. A word between blanks counts as a token.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b, sha256
from typing import Any

import msgspec

Answer = dict[str, Any]


class Invalid(Exception):
    """The body is not valid for this endpoint; the message is that of an OpenAI error."""

    def __init__(self, message: str, *, param: str | None = None) -> None:
        self.message = message
        self.param = param
        super().__init__(message)


class Message(msgspec.Struct, gc=False):
    """A message of a chat, or an input item of a response."""

    role: str = ""
    content: Any = None


class Body(msgspec.Struct, gc=False):
    """The fields of a body that the echo engine reads."""

    model: str
    messages: list[Message] | None = None
    prompt: Any = None
    input: Any = None
    query: str | None = None
    documents: str | list[str] | None = None
    queries: str | list[str] | None = None
    text_1: str | list[str] | None = None
    text_2: str | list[str] | None = None
    metadata: dict[str, Any] | None = None
    max_tokens: int | None = None
    max_completion_tokens: int | None = None


def identity(body: bytes) -> str:
    """Return 32 hex digits that identify these bytes."""
    return blake2b(body, digest_size=16).hexdigest()


def chat(body: Body, name: str) -> Answer:
    """Answer a chat with its last message's text."""
    if not body.messages:
        raise Invalid("messages: at least one message is required", param="messages")
    text, finish = _limited(_text(body.messages[-1].content), body)
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text, "refusal": None},
        "logprobs": None,
        "finish_reason": finish,
    }
    prompt_tokens = sum(_tokens(_text(message.content)) for message in body.messages)
    return {
        "id": f"chatcmpl-{name}",
        "object": "chat.completion",
        "created": 0,
        "model": body.model,
        "choices": [choice],
        "usage": _usage(prompt_tokens, _tokens(text)),
    }


def _limited(text: str, body: Body) -> tuple[str, str]:
    """Return as much of a text as the limit of tokens leaves, and why it ends there."""
    limit = body.max_completion_tokens or body.max_tokens
    words = text.split(" ")
    return (text, "stop") if limit is None or len(words) <= limit else (" ".join(words[:limit]), "length")


def completion(body: Body, name: str) -> Answer:
    """Answer each prompt with itself."""
    prompts = _texts(body.prompt, param="prompt")
    tokens = sum(map(_tokens, prompts))
    return {
        "id": f"cmpl-{name}",
        "object": "text_completion",
        "created": 0,
        "model": body.model,
        "choices": [
            {"index": index, "text": text, "logprobs": None, "finish_reason": "stop"}
            for index, text in enumerate(prompts)
        ],
        "usage": _usage(tokens, tokens),
    }


def response(body: Body, name: str) -> Answer:
    """Answer a response with its last input's text."""
    if isinstance(body.input, list) and body.input:
        last = body.input[-1]
        text = _text(last.get("content") if isinstance(last, dict) else last)
    elif isinstance(body.input, str):
        text = body.input
    else:
        raise Invalid("input: a text or a list of messages is required", param="input")
    tokens = _tokens(text)
    content: Answer = {"type": "output_text", "text": text, "annotations": [], "logprobs": None}
    return {
        "id": f"resp_{name}",
        "object": "response",
        "created_at": 0,
        "status": "completed",
        "model": body.model,
        "output": [
            {
                "id": f"msg_{name}",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [content],
            }
        ],
        "parallel_tool_calls": True,
        "tool_choice": "auto",
        "tools": [],
        "usage": {
            "input_tokens": tokens,
            "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
            "output_tokens": tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": 2 * tokens,
        },
    }


def embedding(body: Body, name: str) -> Answer:
    """Answer each input with eight numbers made from its hash."""
    inputs = _texts(body.input, param="input")
    return {
        "id": f"embd-{name}",
        "object": "list",
        "created": 0,
        "model": body.model,
        "data": [
            {"index": index, "object": "embedding", "embedding": _vector(text)}
            for index, text in enumerate(inputs)
        ],
        "usage": _usage(sum(map(_tokens, inputs)), 0),
    }


def score(body: Body, name: str) -> Answer:
    """Answer each pair of texts with the share of words that they have in common."""
    first = _texts(body.text_1 if body.queries is None else body.queries, param="text_1")
    second = _texts(body.text_2 if body.documents is None else body.documents, param="text_2")
    if len(first) == 1:
        first *= len(second)
    if len(first) != len(second):
        raise Invalid("text_1 and text_2 must hold the same number of texts", param="text_1")
    pairs = list(zip(first, second, strict=True))
    return {
        "id": f"score-{name}",
        "object": "list",
        "created": 0,
        "model": body.model,
        "data": [
            {"index": index, "object": "score", "score": _likeness(*pair)} for index, pair in enumerate(pairs)
        ],
        "usage": _usage(sum(_tokens(one) + _tokens(other) for one, other in pairs), 0),
    }


def rerank(body: Body, name: str) -> Answer:
    """Answer with the documents, most like the query first."""
    documents = _texts(body.documents, param="documents")
    if body.query is None:
        raise Invalid("query: a text is required", param="query")
    scores = [_likeness(body.query, document) for document in documents]
    return {
        "id": f"rerank-{name}",
        "model": body.model,
        "usage": {"total_tokens": sum(map(_tokens, documents)) + _tokens(body.query)},
        "results": [
            {"index": index, "document": {"text": documents[index]}, "relevance_score": scores[index]}
            for index in sorted(range(len(documents)), key=lambda index: -scores[index])
        ],
    }


def transcription(upload: bytes) -> Answer:
    """Answer with what the audio is: its size and digest."""
    text = f"{len(upload)} bytes, sha256 {sha256(upload).hexdigest()}"
    return {"text": text, "usage": {"type": "duration", "seconds": 0}}


ENDPOINTS: dict[str, Callable[[Body, str], Answer]] = {
    "/v1/chat/completions": chat,
    "/v1/completions": completion,
    "/v1/responses": response,
    "/v1/embeddings": embedding,
    "/v1/score": score,
    "/score": score,
    "/v1/rerank": rerank,
    "/v2/rerank": rerank,
    "/rerank": rerank,
}


def _text(content: Any) -> str:
    """Return the text of a message's content: a string, or a list of parts of which some are text."""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return ""


def _texts(value: Any, *, param: str) -> list[str]:
    """Return the texts of a prompt or input; token numbers become words."""
    match value:
        case str():
            return [value]
        case [int(), *_]:
            return [" ".join(map(str, value))]
        case [str(), *_] | [[*_], *_]:
            return [text if isinstance(text, str) else " ".join(map(str, text)) for text in value]
    raise Invalid(f"{param}: a text or a list of texts is required", param=param)


def _tokens(text: str) -> int:
    return len(text.split())


def _usage(prompt: int, completion: int) -> Answer:
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def _vector(text: str) -> Sequence[float]:
    return [(byte - 127.5) / 127.5 for byte in blake2b(text.encode(), digest_size=8).digest()]


def _likeness(one: str, other: str) -> float:
    first, second = set(one.split()), set(other.split())
    return len(first & second) / (len(first | second) or 1)
