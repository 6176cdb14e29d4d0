"""``/v1/files``: upload, list, retrieve, delete, and content with ranges."""

from __future__ import annotations

import re
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Message, Receive, Scope, Send

from vbatch.batches import StoredFile, files
from vbatch.batches.files import Incoming, NoSuchFile
from vbatch.batches.rendered import Rendered
from vbatch.errors import WrongStatus
from vbatch.server import errors, fields, intake
from vbatch.server.context import answer, context_of
from vbatch.server.errors import ApiError
from vbatch.server.multipart import announced, drain, receive

JSONL = "application/jsonl"
_BLOCK = 256 << 10  # bytes of rendered lines that are sent at once
_PURPOSE = "batch"
_RANGE = re.compile(r"bytes=(\d{0,18})-(\d{0,18})")  # several at once are answered with the whole file


def file_document(file: StoredFile) -> dict[str, Any]:
    """Return the file object of OpenAI. ``status`` is deprecated there, and clients poll for it all the same."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at.timestamp()),
        "expires_at": None if file.expires_at is None else int(file.expires_at.timestamp()),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def no_file(file_id: str) -> ApiError:
    """Return the error for a file that is not there."""
    return ApiError(404, f"No such File object: {file_id[:100]}", param="id")


def check_purpose(purpose: str | None) -> str:
    """Return the purpose of an upload. Raises ApiError."""
    if purpose != _PURPOSE:
        raise ApiError(
            400,
            f"Invalid value for 'purpose': this server takes '{_PURPOSE}'.",
            param="purpose",
            code="invalid_value",
        )
    return purpose


async def upload(request: Request) -> Response:
    """Take a file. What the client sends first, the file or its purpose, does not matter."""
    context = context_of(request)
    limits = context.settings.serve
    incoming: Incoming | None = None
    try:
        size = announced(request, file_field="file", most=limits.max_upload)
        with context.intake.one(size) as took:
            await context.in_store(context.intake.check)
            incoming = await context.in_files(Incoming, context.files)
            writing = incoming

            def write(data: bytes) -> None:
                writing.write(data)
                took(len(data))

            form = await receive(request, context, file_field="file", write=write, most=limits.max_upload)
            purpose = check_purpose(form.fields.get("purpose"))
            after = fields.form_expires_after(form.fields) or limits.expires_after
            kept = await context.in_files(
                incoming.keep,
                context.store,
                filename=form.filename or "",
                purpose=purpose,
                expires_after=after,
            )
    except (OSError, ApiError, ClientDisconnect) as error:
        if incoming is not None:
            await context.in_files(incoming.abandon)
        await drain(request)
        raise intake.disk_error(error) if isinstance(error, OSError) else error from None
    except BaseException:
        if incoming is not None:
            incoming.abandon()
        raise
    return answer(file_document(kept))


async def list_files(request: Request) -> Response:
    """List files, the newest first unless asked otherwise."""
    context, query = context_of(request), request.query_params
    order = query.get("order", "desc")
    if order not in ("asc", "desc"):
        raise fields.invalid("order", "'asc' or 'desc'")
    limit = fields.number(query, "limit", least=1, most=10_000, default=10_000)
    after = query.get("after") or None
    try:
        found, more = await context.in_store(
            files.list_files,
            context.store,
            limit=limit,
            purpose=query.get("purpose") or None,
            after=after,
            newest_first=order == "desc",
        )
    except NoSuchFile:
        raise no_file(after or "") from None
    return answer(
        {
            "object": "list",
            "data": [file_document(file) for file in found],
            "first_id": found[0].id if found else None,
            "last_id": found[-1].id if found else None,
            "has_more": more,
        }
    )


async def retrieve(request: Request) -> Response:
    """Answer one file object."""
    context, file_id = context_of(request), request.path_params["file_id"]
    try:
        return answer(file_document(await context.in_store(files.retrieve, context.store, file_id)))
    except NoSuchFile:
        raise no_file(file_id) from None


async def delete(request: Request) -> Response:
    """Remove a file that nothing needs."""
    context, file_id = context_of(request), request.path_params["file_id"]
    try:
        await context.in_store(files.delete_file, context.store, context.files, file_id)
    except NoSuchFile:
        raise no_file(file_id) from None
    except WrongStatus as error:
        raise ApiError(409, f"Cannot delete file {file_id}: {error.message}.") from None
    return answer({"id": file_id, "object": "file", "deleted": True})


async def content(request: Request) -> Response:
    """Send a file, or the part of it that a client still lacks: a download that was cut off need not begin again."""
    context, file_id = context_of(request), request.path_params["file_id"]
    try:
        found = await context.in_store(files.content, context.store, context.files, file_id)
    except NoSuchFile:
        raise no_file(file_id) from None
    if isinstance(found, tuple):
        file, place = found
        headers = {"etag": f'"{file.sha256}"', "cache-control": "private, no-cache"}
        return _Content(place, headers=headers, media_type=JSONL, filename=file.filename)
    return await _rendered(request, found)


async def _rendered(request: Request, found: Rendered) -> Response:
    """Send what is made of the store, or a part of it. Its size costs a pass, and is only counted for a part."""
    tag = f'"{found.tag}"'
    headers = {
        "accept-ranges": "bytes",
        "etag": tag,
        "cache-control": "private, no-cache",
        "content-disposition": f'attachment; filename="{found.filename}"',
    }
    asked = _RANGE.fullmatch(request.headers.get("range", ""))
    if asked is None or asked[0] == "bytes=-" or request.headers.get("if-range", tag) != tag:
        return StreamingResponse(blocks(found.lines()), headers=headers, media_type=JSONL)
    size = await context_of(request).in_store(found.size)
    start, end = _part(asked[1], asked[2], size)
    if not start < end:
        refusal = errors.response(ApiError(416, "Invalid Range header.", param="range"))
        refusal.headers["content-range"] = f"bytes */{size}"
        return refusal
    headers |= {"content-range": f"bytes {start}-{end - 1}/{size}", "content-length": str(end - start)}
    return StreamingResponse(blocks(found.part(start, end)), 206, headers, JSONL)


def _part(first: str, last: str, size: int) -> tuple[int, int]:
    """Return where a range begins, and where it ends; without ``first``, it is so many of the last bytes."""
    if not first:
        return max(size - int(last), 0), size
    return int(first), min(int(last) + 1, size) if last else size


class _Content(FileResponse):
    """A file, whose errors are documents like all others."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it, or the part that was asked for."""
        refused = False

        async def shaped(message: Message) -> None:
            nonlocal refused
            if message["type"] == "http.response.start" and message["status"] >= 400:
                refused = True
                refusal = errors.response(ApiError(message["status"], "Invalid Range header.", param="range"))
                kept = [(name, value) for name, value in message["headers"] if name == b"content-range"]
                refusal.raw_headers += kept
                await refusal(scope, receive, send)
            elif not refused:
                await send(message)

        await super().__call__(scope, receive, shaped)


def blocks(lines: Iterator[bytes]) -> Iterator[bytes]:
    """Put lines together into blocks that are worth sending."""
    held: list[bytes] = []
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        if size >= _BLOCK:
            yield b"".join(held)
            held, size = [], 0
    if held:
        yield b"".join(held)


def seconds(time: timedelta | None) -> int | None:
    """Return a duration in whole seconds."""
    return None if time is None else int(time.total_seconds())


routes = [
    Route("/v1/files", upload, methods=["POST"]),
    Route("/v1/files", list_files, methods=["GET"]),
    Route("/v1/files/{file_id}", retrieve, methods=["GET"]),
    Route("/v1/files/{file_id}", delete, methods=["DELETE"]),
    Route("/v1/files/{file_id}/content", content, methods=["GET"]),
]
