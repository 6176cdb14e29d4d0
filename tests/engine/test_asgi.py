"""One POST through an ASGI application, without a socket."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest

from vbatch.engine import asgi

OK = {"type": "http.response.start", "status": 200, "headers": []}


def test_the_application_sees_one_post_with_a_json_body() -> None:
    seen: dict[str, Any] = {}

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.update(scope, message=await receive())
        await send(OK)
        await send({"type": "http.response.body", "body": b"{}"})

    reply = asyncio.run(
        asgi.post(app, "/v1/x%20y?a=1", b'{"b":2}', headers=[(b"x-more", b"1")], request_id="req-1")
    )

    assert (reply.status, reply.body, reply.request_id) == (200, b"{}", "req-1")
    assert (seen["method"], seen["path"], seen["query_string"]) == ("POST", "/v1/x y", b"a=1")
    assert seen["message"] == {"type": "http.request", "body": b'{"b":2}', "more_body": False}
    headers = dict(seen["headers"])
    assert headers[b"content-type"] == b"application/json"
    assert headers[b"content-length"] == b"7"
    assert headers[b"x-request-id"] == b"req-1"
    assert headers[b"x-more"] == b"1"


def test_an_answer_in_pieces_is_put_together() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(OK)
        for piece in (b"[1,", b"2", b"]"):
            await send({"type": "http.response.body", "body": piece, "more_body": True})
        await send({"type": "http.response.body"})

    assert asyncio.run(asgi.post(app, "/", b"")).body == b"[1,2]"


@pytest.mark.parametrize(("value", "seconds"), [(b"7", 7.0), (b"0.5", 0.5), (b"Wed, 21 Oct", None)])
def test_retry_after_is_read_when_it_is_a_number(value: bytes, seconds: float | None) -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(OK | {"status": 429, "headers": [(b"retry-after", value)]})
        await send({"type": "http.response.body", "body": b"{}"})

    reply = asyncio.run(asgi.post(app, "/", b""))

    assert (reply.status, reply.retry_after) == (429, seconds)


def test_an_application_that_raises_before_it_answers_is_a_500() -> None:
    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(OK)
        raise ValueError("half an answer")

    reply = asyncio.run(asgi.post(app, "/", b""))

    assert reply.status == 500
    assert msgspec.json.decode(reply.body)["error"]["message"] == "ValueError: half an answer"


def test_an_answer_stands_when_the_application_raises_afterwards() -> None:
    """Starlette answers 500 itself and raises then, for its server to log."""

    async def app(_scope: Any, _receive: Any, send: Any) -> None:
        await send(OK | {"status": 500})
        await send({"type": "http.response.body", "body": b'{"error":{}}'})
        raise ValueError("for the log")

    assert asyncio.run(asgi.post(app, "/", b"")).body == b'{"error":{}}'


def test_cancelling_hangs_up_and_waits_for_the_handler() -> None:
    """Mutant: without the disconnect message the work inside goes on, as vLLM's would."""
    ended: list[str] = []

    async def app(_scope: Any, receive: Any, _send: Any) -> None:
        await receive()
        work = asyncio.create_task(asyncio.sleep(60))  # not cancelled when its awaiter is
        while (await receive())["type"] != "http.disconnect":
            pass
        work.cancel()
        ended.append("disconnected")

    async def scenario() -> None:
        asking = asyncio.create_task(asgi.post(app, "/", b"{}"))
        await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert ended == ["disconnected"]

    asyncio.run(scenario())


def test_cancelling_ends_a_handler_that_does_not_listen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "DISCONNECT_GRACE", 0.05)
    ended: list[str] = []

    async def app(_scope: Any, _receive: Any, _send: Any) -> None:
        try:
            await asyncio.sleep(60)
        finally:
            ended.append("cancelled")

    async def scenario() -> None:
        asking = asyncio.create_task(asgi.post(app, "/", b"{}"))
        await asyncio.sleep(0.01)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert ended == ["cancelled"]

    asyncio.run(scenario())


def test_a_listener_that_is_cancelled_does_not_end_the_others() -> None:
    """vLLM listens twice. Mutant: one future for all of them."""
    heard: list[str] = []

    async def app(_scope: Any, receive: Any, send: Any) -> None:
        await receive()
        given_up, other = asyncio.create_task(receive()), asyncio.create_task(receive())
        await asyncio.sleep(0)
        given_up.cancel()
        heard.append((await other)["type"])

    async def scenario() -> None:
        asking = asyncio.create_task(asgi.post(app, "/", b"{}"))
        await asyncio.sleep(0.01)
        assert not heard
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert heard == ["http.disconnect"]

    asyncio.run(scenario())
