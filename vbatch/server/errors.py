"""Errors in OpenAI's shape: four keys, always; and which of vbatch's errors has which HTTP status."""

from __future__ import annotations

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from vbatch import errors
from vbatch.protocol import encode

INVALID = "invalid_request_error"
_BUSY = 5  # seconds after which a client should ask again

# An error that is not here is the server's own fault. The first that fits holds.
_STATUS: tuple[tuple[type[errors.VbatchError], int], ...] = (
    (errors.NoSuchBatch, 404),
    (errors.NoSuchRequest, 404),
    (errors.WrongStatus, 409),
    (errors.StoreUnreachable, 503),
    (errors.UsageError, 400),
    (errors.InputUnreadable, 400),
)


class ApiError(Exception):
    """An answer that is an error. ``close`` ends the connection: the rest of the request is not read."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        retry_after: int | None = None,
        close: bool = False,
    ) -> None:
        self.status = status
        self.message = message
        self.param = param
        self.code = code
        self.retry_after = retry_after
        self.close = close
        super().__init__(message)


def response(error: ApiError) -> Response:
    """Return the answer for an error.

    OpenAI's clients repeat a 409 and every 5xx by themselves: where that cannot help, the answer says so.
    """
    kind = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}.get(
        error.status, INVALID if error.status < 500 else "server_error"
    )
    body = {"message": error.message, "type": kind, "param": error.param, "code": error.code}
    headers = {}
    if error.retry_after is not None:
        headers["retry-after"] = str(error.retry_after)
    elif error.status in (408, 409, 507):
        headers["x-should-retry"] = "false"
    if error.status == 401:
        headers["www-authenticate"] = "Bearer"
    if error.close:
        headers["connection"] = "close"
    return Response(encode({"error": body}), error.status, headers, "application/json")


def of(error: errors.VbatchError) -> ApiError:
    """Return one of vbatch's errors as an answer."""
    status = next((number for kind, number in _STATUS if isinstance(error, kind)), 500)
    if isinstance(error, errors.NoSuchBatch):
        return ApiError(status, error.message, param="batch_id")
    retry_after = _BUSY if status == 503 else None
    return ApiError(status, error.message, code=None if status < 500 else error.code, retry_after=retry_after)


async def on_api_error(_request: Request, error: Exception) -> Response:
    """Answer an ApiError."""
    assert isinstance(error, ApiError)
    return response(error)


async def on_vbatch_error(_request: Request, error: Exception) -> Response:
    """Answer an error of an operation."""
    assert isinstance(error, errors.VbatchError)
    return response(of(error))


async def on_http_exception(request: Request, error: Exception) -> Response:
    """Answer what no route answers: an unknown path, another method."""
    assert isinstance(error, HTTPException)
    if error.status_code == 404:
        return response(
            ApiError(404, f"Invalid URL ({request.method} {request.url.path})", code="unknown_url")
        )
    if error.status_code == 405:
        return response(ApiError(405, f"Not allowed to {request.method} on {request.url.path}."))
    return response(ApiError(error.status_code, error.detail))


async def on_crash(_request: Request, _error: Exception) -> Response:
    """Answer a defect of vbatch: nothing of it is shown; uvicorn logs it."""
    return response(
        ApiError(500, "The server had an error while processing your request.", code="internal_error")
    )


async def on_gone(_request: Request, _error: Exception) -> Response:
    """Answer no client: it went away in the middle of its request."""
    return response(ApiError(400, "The client closed the connection.", close=True))


HANDLERS = {
    ClientDisconnect: on_gone,
    ApiError: on_api_error,
    errors.VbatchError: on_vbatch_error,
    HTTPException: on_http_exception,
    Exception: on_crash,
}
