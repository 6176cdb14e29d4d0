"""The functions of an app's routes called at once: the answers of the app, or left to it."""

from __future__ import annotations

import asyncio
import re
from typing import Annotated, Any

import msgspec
import pytest
from fastapi import Depends, FastAPI, Form, Request
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware

from tests.engine.conftest import MODEL, Loaded
from vbatch.engine import asgi
from vbatch.engine.direct import Direct

HELLO = [{"role": "user", "content": "Say hello."}]


class Body(BaseModel):
    """What the routes below take."""

    number: int


async def validate_json_request() -> None:
    """The check of vLLM's that a direct call may leave out."""


def make_app() -> FastAPI:
    """Return an app with routes of every shape."""
    app = FastAPI()
    app.add_middleware(CORSMiddleware)
    app.state.calls = []

    @app.post("/plain", dependencies=[Depends(validate_json_request)])
    async def plain(request: Body, raw_request: Request) -> JSONResponse:
        raw_request.app.state.calls.append(request.number)
        headers = {"retry-after": "3", "x-seen": raw_request.headers["x-request-id"]}
        return JSONResponse({"twice": 2 * request.number}, status_code=207, headers=headers)

    @app.post("/pieces")
    async def pieces(request: Body, raw_request: Request) -> StreamingResponse:
        return StreamingResponse(str(each) for each in range(request.number))

    @app.post("/object")
    async def fields(request: Body, raw_request: Request) -> dict[str, int]:
        return {"number": request.number}

    @app.post("/raises")
    async def raises(request: Body, raw_request: Request) -> None:
        raise ValueError(request.number)

    @app.post("/form")
    async def form(request: Annotated[Body, Form()], raw_request: Request) -> JSONResponse:
        return JSONResponse({})

    @app.post("/of/{name}")
    async def named(name: str, request: Body, raw_request: Request) -> JSONResponse:
        return JSONResponse({})

    @app.exception_handler(LookupError)
    async def told(raw_request: Request, error: LookupError) -> JSONResponse:
        return JSONResponse({"error": str(error)}, status_code=404)

    @app.post("/fails")
    async def fails(request: Body, raw_request: Request) -> None:
        raw_request.app.state.calls.append(request.number)
        raise IndexError(request.number)

    async def key(raw_request: Request) -> None:
        """Some check that is not known."""

    @app.post("/checked", dependencies=[Depends(key)])
    async def checked(request: Body, raw_request: Request) -> JSONResponse:
        return JSONResponse({})

    return app


def test_a_function_answers_with_its_status_its_headers_and_its_body() -> None:
    app = make_app()

    reply = asyncio.run(Direct(app).post("/plain", b'{"number": 4}', [], "req-1"))

    assert reply is not None
    assert (reply.status, reply.body, reply.request_id, reply.retry_after) == (
        207,
        b'{"twice":8}',
        "req-1",
        3,
    )
    assert app.state.calls == [4]


def test_an_answer_in_pieces_is_put_together() -> None:
    reply = asyncio.run(Direct(make_app()).post("/pieces", b'{"number": 4}', [], "req-1"))

    assert reply is not None
    assert reply.body == b"0123"


@pytest.mark.parametrize("path", ["/form", "/of/{name}", "/checked", "/no/such/route", "/openapi.json"])
def test_what_needs_more_than_a_body_is_left_to_the_app(path: str) -> None:
    assert asyncio.run(Direct(make_app()).post(path, b'{"number": 4}', [], "req-1")) is None


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/plain", b'{"number": "four"}'),
        ("/plain", b"{"),
        ("/plain", b"\xff"),
        ("/raises", b'{"number": 4}'),
        ("/object", b'{"number": 4}'),
    ],
)
def test_an_error_is_answered_by_the_app(path: str, body: bytes) -> None:
    app = make_app()

    assert asyncio.run(Direct(app).post(path, body, [], "req-1")) is None
    assert app.state.calls == []


def test_what_a_function_raises_is_answered_by_the_apps_handler() -> None:
    """Mutant: left to the app, which would call the function, and so the engine, a second time."""
    app = make_app()

    reply = asyncio.run(Direct(app).post("/fails", b'{"number": 4}', [], "req-1"))

    assert reply is not None
    assert (reply.status, reply.body) == (404, b'{"error":"4"}')
    assert app.state.calls == [4]


def test_a_layer_that_is_not_known_sees_every_request() -> None:
    """Mutant: with every layer taken for one that only counts, a user's ``--middleware`` sees no batch."""

    app = make_app()
    app.add_middleware(GZipMiddleware)

    assert asyncio.run(Direct(app).post("/plain", b'{"number": 4}', [], "req-1")) is None
    assert app.state.calls == []


@pytest.mark.parametrize("swallowed", [False, True], ids=["raised", "swallowed"])
def test_cancelling_the_call_cancels_the_function(swallowed: bool) -> None:
    """Mutant: without ``_raise_if_cancelled`` vLLM's error "client disconnected" is taken for an answer."""
    ended: list[str] = []

    async def scenario() -> None:
        app = FastAPI()
        began = asyncio.Event()

        @app.post("/slow")
        async def slow(request: Body, raw_request: Request) -> JSONResponse:
            began.set()
            try:
                await asyncio.sleep(60)
            except asyncio.CancelledError:
                ended.append("cancelled")
                if not swallowed:
                    raise
            return JSONResponse({})

        asking = asyncio.create_task(Direct(app).post("/slow", b'{"number": 4}', [], "req-1"))
        await began.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(scenario())

    assert ended == ["cancelled"]


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("url", "fields"),
    [
        ("/v1/chat/completions", {"messages": HELLO, "logprobs": True, "top_logprobs": 2}),
        (
            "/v1/chat/completions",
            {"messages": HELLO, "stream": True, "stream_options": {"include_usage": True}},
        ),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * 3000}]}),
        ("/v1/completions", {"prompt": "Once", "n": 2}),
        ("/v1/completions", {"prompt": ["Once upon", "a time"], "unknown": 1}),
        ("/v1/responses", {"input": "Say hello."}),
    ],
)
def test_vllm_answers_as_through_its_app(loaded: Loaded, url: str, fields: dict[str, Any]) -> None:
    """A vLLM whose routes are no longer called at once fails here: then it would be slow, and say nothing."""
    limit = "max_output_tokens" if url == "/v1/responses" else "max_tokens"
    body = msgspec.json.encode({"model": MODEL, limit: 16, "temperature": 0, **fields})

    at_once = loaded.run(Direct(loaded.engine.app).post(url, body, [], "req-1"))
    through = loaded.run(asgi.post(loaded.engine.app, url, body, request_id="req-1"))

    assert at_once is not None
    assert at_once.status == through.status
    assert _without_names(at_once.body) == _without_names(through.body)


def _without_names(body: bytes) -> bytes:
    """Leave out what differs from call to call: identifiers and times."""
    return re.sub(rb'"(id|item_id|created|created_at|completed_at)":("[^"]*"|[\d.]+)', b"", body)
