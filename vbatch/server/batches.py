"""``/v1/batches``: create, retrieve, list, cancel; beside OpenAI's: output and errors at any time, retry, delete."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from vbatch import batches
from vbatch.batches import RetryOptions, Selection, documents
from vbatch.batches import create as creation
from vbatch.batches.create import DAY, Wanted
from vbatch.batches.files import NoSuchFile
from vbatch.errors import NoSuchBatch, UsageError, WrongStatus
from vbatch.protocol import ENDPOINTS
from vbatch.server import fields
from vbatch.server.context import Context, answer, context_of
from vbatch.server.errors import ApiError
from vbatch.server.files import JSONL, blocks
from vbatch.text import parse_duration

_FIELDS = (
    *("input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"),
    *("name", "priority", "reuse", "strict"),  # vbatch's own, through extra_body
)
_RETRY_FIELDS = ("model", "only", "cut_off", "changes")
_KEY = 255  # characters
_UNLIMITED = "unlimited"


async def create(request: Request) -> Response:
    """Enter a batch and answer at once: its file is validated behind, however large it is."""
    context = context_of(request)
    wanted = _wanted(await fields.document(request, known=_FIELDS), request, context)
    try:
        batch = await context.in_store(creation.create, context.store, context.files, wanted)
    except NoSuchFile:
        raise ApiError(
            400,
            f"Invalid input_file_id: there is no file '{wanted.input_file[:100]}'.",
            param="input_file_id",
        ) from None
    except NoSuchBatch as error:
        raise ApiError(400, f"{error.message}.", param="reuse") from None
    except UsageError as error:
        raise ApiError(400, f"{error.message}.", code="invalid_value") from None
    context.poke()
    return answer(documents.served_document(batch))


def _wanted(body: dict[str, Any], request: Request, context: Context) -> Wanted:
    endpoint = fields.needed_text(body, "endpoint")
    if endpoint not in ENDPOINTS:
        raise ApiError(
            400, f"Invalid value for 'endpoint': '{endpoint[:100]}'.", param="endpoint", code="invalid_value"
        )
    shown = fields.text(body, "completion_window") or DAY
    key = request.headers.get("idempotency-key")
    if key is not None and not 0 < len(key) <= _KEY:
        raise fields.invalid("Idempotency-Key", f"a text of 1 to {_KEY} characters")
    return Wanted(
        input_file=fields.needed_text(body, "input_file_id"),
        endpoint=endpoint,
        completion_window=shown,
        window=_window(shown, enforced=context.settings.serve.enforce_window),
        metadata=fields.metadata(body),
        output_expires_after=fields.expires_after(body, "output_expires_after")
        or context.settings.serve.expires_after,
        name=fields.text(body, "name", most=512),
        priority=fields.number(body, "priority", least=-1_000_000, most=1_000_000, default=0),
        reuse=fields.text(body, "reuse"),
        strict=fields.flag(body, "strict"),
        notify=context.settings.notify_default,
        key=key,
        repeated=request.headers.get("x-stainless-retry-count", "0") not in ("", "0"),
    )


def _window(shown: str, *, enforced: bool) -> timedelta | None:
    """Return after which time a batch ends: ``24h`` is what every client must send, and ends none unless asked to."""
    if shown == _UNLIMITED or (shown == DAY and not enforced):
        return None
    try:
        return parse_duration(shown)
    except ValueError:
        raise fields.invalid(
            "completion_window", f"'{DAY}', another time such as '72h' or '7d', or 'unlimited'"
        ) from None


async def list_batches(request: Request) -> Response:
    """List batches, the newest first, from the command line too."""
    context, query = context_of(request), request.query_params
    limit = fields.number(query, "limit", least=1, most=100, default=20)
    after = query.get("after") or None
    if after is not None and not fields.is_batch_id(after):
        raise fields.no_batch(after)
    try:
        found = await context.in_store(batches.page, context.store, limit=limit, after=after)
    except NoSuchBatch:
        raise fields.no_batch(after or "") from None
    data = [documents.served_document(batch) for batch in found.batches]
    return answer(
        {
            "object": "list",
            "data": data,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "has_more": found.has_more,
        }
    )


async def retrieve(request: Request) -> Response:
    """Answer a batch as it is now."""
    context, batch_id = context_of(request), fields.batch_id(request)
    return answer(documents.served_document(await _found(context, batch_id)))


async def cancel(request: Request) -> Response:
    """Cancel a batch; asking twice is no error."""
    context, batch_id = context_of(request), fields.batch_id(request)
    try:
        batch = await context.in_store(batches.request_cancel, context.store, batch_id)
    except NoSuchBatch:
        raise fields.no_batch(batch_id) from None
    except WrongStatus:
        ended = await _found(context, batch_id)
        raise ApiError(409, f"Cannot cancel a batch with status '{ended.status}'.") from None
    context.poke()
    return answer(documents.served_document(batch))


async def retry(request: Request) -> Response:
    """Submit the failed requests of an ended batch again, as a new batch."""
    context, batch_id = context_of(request), fields.batch_id(request)
    body = await fields.document(request, known=_RETRY_FIELDS, optional=True)
    changes = body.get("changes") or {}
    if not isinstance(changes, dict):
        raise fields.invalid("changes", "an object of the fields to change")
    options = RetryOptions(
        model=fields.text(body, "model"),
        only=fields.text(body, "only"),
        cut_off=fields.flag(body, "cut_off"),
        changes=changes,
        folder=context.files,
    )
    try:
        batch = await context.in_store(batches.retry, context.store, batch_id, options)
    except NoSuchBatch:
        raise fields.no_batch(batch_id) from None
    except WrongStatus as error:
        raise ApiError(409, f"Cannot retry: {error.message}.") from None
    context.poke()
    return answer(documents.served_document(batch))


async def delete(request: Request) -> Response:
    """Remove an ended batch, its requests and results. Its files stay until they are deleted themselves."""
    context, batch_id = context_of(request), fields.batch_id(request)
    try:
        batch = await context.in_store(batches.delete, context.store, batch_id)
    except NoSuchBatch:
        raise fields.no_batch(batch_id) from None
    except WrongStatus as error:
        raise ApiError(409, f"Cannot delete: {error.message}.") from None
    return answer(documents.deleted_document(batch))


async def output(request: Request) -> Response:
    """Send the answers that are there, in file order, whole lines, at any time."""
    return await _lines(request, Selection())


async def errors(request: Request) -> Response:
    """Send the failed requests that are there."""
    return await _lines(request, Selection(errors=True))


async def _lines(request: Request, selection: Selection) -> Response:
    context, batch_id = context_of(request), fields.batch_id(request)
    batch = await _found(context, batch_id)
    lines = await context.in_store(batches.results, context.store, batch.id, selection)
    headers = {} if batch.status.final else {"x-incomplete": "true"}
    return StreamingResponse(blocks(lines), headers=headers, media_type=JSONL)


async def _found(context: Context, batch_id: str) -> batches.Batch:
    try:
        return await context.in_store(batches.find, context.store, batch_id)
    except NoSuchBatch:
        raise fields.no_batch(batch_id) from None


routes = [
    Route("/v1/batches", create, methods=["POST"]),
    Route("/v1/batches", list_batches, methods=["GET"]),
    Route("/v1/batches/{batch_id}", retrieve, methods=["GET"]),
    Route("/v1/batches/{batch_id}", delete, methods=["DELETE"]),
    Route("/v1/batches/{batch_id}/cancel", cancel, methods=["POST"]),
    Route("/v1/batches/{batch_id}/retry", retry, methods=["POST"]),
    Route("/v1/batches/{batch_id}/output", output, methods=["GET"]),
    Route("/v1/batches/{batch_id}/errors", errors, methods=["GET"]),
]
