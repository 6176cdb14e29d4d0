"""The echo engine as an HTTP server for chat: OpenAI's answers at once or as a stream, always the same bytes."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from http import HTTPStatus
from typing import Any

import msgspec

from vbatch.engine import Reply
from vbatch.engine.asgi import Message, Receive, Send
from vbatch.protocol import MODELS_PATH

DONE = b"data: [DONE]\n\n"

_encode = msgspec.json.Encoder().encode


class _Streamed(msgspec.Struct, gc=False):
    stream: bool = False


async def serve(
    scope: Message,
    receive: Receive,
    send: Send,
    *,
    names: frozenset[str],
    post: Callable[[str, bytes], Awaitable[Reply]],
    pause: Callable[[], Awaitable[None]],
) -> None:
    """Answer one request until its client leaves: ``post`` makes the answer, ``pause`` passes before each word."""
    if scope["path"] == MODELS_PATH:
        data = [{"id": name, "object": "model", "created": 0, "owned_by": "vbatch"} for name in sorted(names)]
        await _whole(send, HTTPStatus.OK, _encode({"object": "list", "data": data}))
        return
    body = await _body(receive)
    answering = asyncio.ensure_future(_answer(scope["path"], body, send, post, pause))
    leaving = asyncio.ensure_future(receive())
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
    finally:
        leaving.cancel()
        if not answering.done():
            answering.cancel()
        await asyncio.wait((answering, leaving))
    if not answering.cancelled():
        answering.result()


async def _answer(
    url: str,
    body: bytes,
    send: Send,
    post: Callable[[str, bytes], Awaitable[Reply]],
    pause: Callable[[], Awaitable[None]],
) -> None:
    reply = await post(url, body)
    if reply.status != HTTPStatus.OK or not _streamed(body):
        await _whole(send, reply.status, reply.body)
        return
    await _start(send, HTTPStatus.OK, b"text/event-stream")
    for event in events(url, msgspec.json.decode(reply.body)):
        await pause()
        await send({"type": "http.response.body", "body": event, "more_body": True})
    await send({"type": "http.response.body", "body": DONE})


def events(url: str, answer: dict[str, Any]) -> Iterator[bytes]:
    """Yield a whole answer word by word, as the events of a stream."""
    if url == "/v1/chat/completions":
        choice = answer["choices"][0]
        head = {key: answer[key] for key in ("id", "created", "model")}
        head["object"] = "chat.completion.chunk"
        for word in _words(choice["message"]["content"]):
            yield _event(
                {**head, "choices": [{"index": 0, "delta": {"content": word}, "finish_reason": None}]}
            )
        last = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
        yield _event({**head, "choices": [last], "usage": answer["usage"]})
    elif url == "/v1/completions":
        for choice in answer["choices"]:
            for word in _words(choice["text"]):
                yield _event({**answer, "choices": [{**choice, "text": word, "finish_reason": None}]})
            yield _event({**answer, "choices": [{**choice, "text": ""}]})
    elif url == "/v1/responses":
        for word in _words(answer["output"][0]["content"][0]["text"]):
            yield _named("response.output_text.delta", {"delta": word})
        yield _named("response.completed", {"response": answer})
    else:
        yield _event(answer)


def _words(text: str) -> list[str]:
    return [word for word in text.replace(" ", "\0 ").split("\0") if word]


def _event(document: object) -> bytes:
    return b"data: " + _encode(document) + b"\n\n"


def _named(name: str, document: dict[str, Any]) -> bytes:
    return f"event: {name}\n".encode() + _event({"type": name, **document})


def _streamed(body: bytes) -> bool:
    try:
        return msgspec.json.decode(body, type=_Streamed).stream
    except msgspec.DecodeError:
        return False


async def _body(receive: Receive) -> bytes:
    pieces = []
    while True:
        message = await receive()
        pieces.append(message.get("body", b""))
        if not message.get("more_body", False):
            return b"".join(pieces)


async def _whole(send: Send, status: int, body: bytes) -> None:
    await _start(send, status, b"application/json", (b"content-length", b"%d" % len(body)))
    await send({"type": "http.response.body", "body": body})


async def _start(send: Send, status: int, content_type: bytes, *headers: tuple[bytes, bytes]) -> None:
    head = [(b"content-type", content_type), *headers]
    await send({"type": "http.response.start", "status": int(status), "headers": head})
