"""Call the functions of vLLM's routes at once, without what its app does for clients over HTTP.

For each request the app runs its middlewares, looks the route up, resolves its dependencies and starts two tasks that
watch for a disconnect: about a third of what the front end costs (``tests/benchmarks/bench_frontend.py``). A worker
needs none of it. What a function does not take is left to the app, and what it raises to the app's handler of that:
errors are answered in the same words.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from vbatch.engine import Reply, asgi

# Layers of the app that only count, or check what a worker has by itself. With any other one nothing is called at once.
_LAYERS = {
    "AuthenticationMiddleware",
    "CORSMiddleware",
    "PrometheusInstrumentatorMiddleware",
    "ScalingMiddleware",
}
_CHECKS = {"validate_json_request"}  # that the content type is JSON


class _Function(NamedTuple):
    """What a route calls: with the validated body and with the request itself, by these names."""

    call: Callable[..., Awaitable[Any]]
    validate: Callable[[Any], Any]
    body: str
    request: str


class Direct:
    """The routes of one app (FastAPI's) that take one JSON object and answer with a response."""

    def __init__(self, app: Any) -> None:
        self._app = app
        known = all(layer.cls.__name__ in _LAYERS for layer in app.user_middleware)
        found = ((route.path, _function(route)) for route in app.routes) if known else ()
        self._functions = {path: function for path, function in found if function is not None}

    async def post(self, url: str, body: bytes, headers: asgi.Headers, request_id: str) -> Reply | None:
        """Answer one request; None where the app has to. Cancelling the call aborts its sequence."""
        function = self._functions.get(url)
        if function is None:
            return None
        from starlette.requests import Request

        try:
            value = function.validate(json.loads(body))
        except Exception:
            return None
        exchange = asgi.Exchange(None)
        scope = asgi.scope(url, len(body), "application/json", headers, request_id)
        request = Request({**scope, "app": self._app}, exchange.receive)
        try:
            response = await function.call(**{function.body: value, function.request: request})
        except Exception as error:
            response = await self._answer_to(error, request)
        _raise_if_cancelled()
        try:
            await response(request.scope, exchange.receive, exchange.send)
        except Exception:  # it is no response, or its stream broke off
            return None
        return exchange.reply(request_id)

    async def _answer_to(self, error: Exception, request: Any) -> Any:
        """Return what the app would answer where a function raises; None where it has no handler for that."""
        handlers = self._app.exception_handlers
        handler: Any = next((handlers[kind] for kind in type(error).__mro__ if kind in handlers), None)
        with contextlib.suppress(Exception):  # that of a dead engine wants to end a server
            return await handler(request, error)
        return None


def _raise_if_cancelled() -> None:
    """Raise CancelledError in a task that was cancelled: some of vLLM's functions return an error instead."""
    task = asyncio.current_task()
    if task is not None and task.cancelling():
        raise asyncio.CancelledError


def _function(route: Any) -> _Function | None:
    """Return what a route calls; None where it wants more than a JSON body and the request."""
    from pydantic import TypeAdapter

    needs = getattr(route, "dependant", None)
    if needs is None or "POST" not in route.methods or len(needs.body_params) != 1:
        return None
    (body,) = needs.body_params
    others = (needs.path_params, needs.query_params, needs.header_params, needs.cookie_params)
    checks = {getattr(each.call, "__name__", "") for each in needs.dependencies}
    if any(others) or checks - _CHECKS or needs.request_param_name is None:
        return None
    call = inspect.unwrap(route.endpoint)
    if set(inspect.signature(call).parameters) != {body.name, needs.request_param_name}:
        return None
    if type(body.field_info).__name__ != "Body":  # a form
        return None
    validate = TypeAdapter(body.field_info.annotation).validate_python
    return _Function(
        call, lambda value: validate(value, from_attributes=True), body.name, needs.request_param_name
    )
