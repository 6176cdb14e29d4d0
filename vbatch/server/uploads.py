"""``/v1/uploads``: a file in parts of at most 64 MiB, as the official clients send large ones."""

from __future__ import annotations

import time
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from vbatch.batches import StoredFile, uploads
from vbatch.batches.uploads import NoSuchUpload, Part, Upload
from vbatch.errors import UsageError, WrongStatus
from vbatch.server import fields, intake
from vbatch.server.context import answer, context_of
from vbatch.server.errors import ApiError
from vbatch.server.files import check_purpose, file_document, seconds
from vbatch.server.multipart import announced, drain, receive
from vbatch.text import MIB

MOST_PART = 64 * MIB
_FIELDS = ("filename", "purpose", "bytes", "mime_type", "expires_after")


def _document(upload: Upload, file: StoredFile | None = None) -> dict[str, Any]:
    return {
        "id": upload.id,
        "object": "upload",
        "bytes": upload.bytes,
        "created_at": upload.created_at,
        "expires_at": upload.expires_at,
        "filename": upload.filename,
        "purpose": upload.purpose,
        "status": upload.status,
        "file": None if file is None else file_document(file),
    }


async def create(request: Request) -> Response:
    """Begin an upload of a size that is known."""
    context = context_of(request)
    limits = context.settings.serve
    body = await fields.document(request, known=_FIELDS)
    size = fields.number(body, "bytes", least=1, most=1 << 50, default=0)
    if not size:
        raise ApiError(
            400, "Missing required parameter: 'bytes'.", param="bytes", code="missing_required_parameter"
        )
    if size > limits.max_upload:
        raise ApiError(413, f"The file is larger than {limits.max_upload:,} bytes.", param="bytes")
    await context.in_store(context.intake.check, size)
    upload = await context.in_files(
        uploads.begin,
        context.files,
        filename=fields.needed_text(body, "filename"),
        purpose=check_purpose(body.get("purpose")),
        mime_type=fields.text(body, "mime_type") or "application/jsonl",
        size=size,
        expires_after=seconds(fields.expires_after(body, "expires_after") or limits.expires_after),
    )
    return answer(_document(upload))


async def add_part(request: Request) -> Response:
    """Take a part."""
    context, upload_id = context_of(request), request.path_params["upload_id"]
    part: Part | None = None
    try:
        size = announced(request, file_field="data", most=MOST_PART)
        with context.intake.one(size) as took:
            await context.in_store(context.intake.check)
            part = await context.in_files(Part, context.files, upload_id)
            writing = part

            def write(data: bytes) -> None:
                writing.write(data)
                took(len(data))

            await receive(request, context, file_field="data", write=write, most=MOST_PART)
            await context.in_files(part.keep)
    except (OSError, ApiError, ClientDisconnect, NoSuchUpload, WrongStatus, UsageError) as error:
        if part is not None:
            await context.in_files(part.abandon)
        await drain(request)
        raise _shown(error, upload_id) from None
    return answer(
        {"id": part.id, "object": "upload.part", "created_at": int(time.time()), "upload_id": upload_id}
    )


async def complete(request: Request) -> Response:
    """Make a file of the parts, in the order that the client names."""
    context, upload_id = context_of(request), request.path_params["upload_id"]
    body = await fields.document(request, known=("part_ids", "md5"))
    part_ids = body.get("part_ids")
    if not isinstance(part_ids, list) or not part_ids or not all(isinstance(each, str) for each in part_ids):
        raise fields.invalid("part_ids", "a list of the ids of parts")
    try:
        begun = await context.in_files(uploads.find, context.files, upload_id)
        if begun.status == "pending":
            await context.in_store(context.intake.check_copy, begun.bytes)
        upload, file = await context.in_files(
            uploads.complete, context.store, context.files, upload_id, part_ids, fields.text(body, "md5")
        )
    except (OSError, NoSuchUpload, WrongStatus, UsageError) as error:
        raise _shown(error, upload_id) from None
    return answer(_document(upload, file))


async def cancel(request: Request) -> Response:
    """Give an upload up."""
    context, upload_id = context_of(request), request.path_params["upload_id"]
    try:
        return answer(_document(await context.in_files(uploads.cancel, context.files, upload_id)))
    except (NoSuchUpload, WrongStatus) as error:
        raise _shown(error, upload_id) from None


def _shown(error: Exception, upload_id: str) -> Exception:
    match error:
        case OSError():
            return intake.disk_error(error)
        case NoSuchUpload():
            return ApiError(404, f"No such Upload object: {upload_id[:100]}", param="upload_id", close=True)
        case WrongStatus():
            return ApiError(409, f"{error.message[:1].upper()}{error.message[1:]}.", close=True)
        case UsageError():
            return ApiError(400, f"{error.message[:1].upper()}{error.message[1:]}.", close=True)
    return error


routes = [
    Route("/v1/uploads", create, methods=["POST"]),
    Route("/v1/uploads/{upload_id}/parts", add_part, methods=["POST"]),
    Route("/v1/uploads/{upload_id}/complete", complete, methods=["POST"]),
    Route("/v1/uploads/{upload_id}/cancel", cancel, methods=["POST"]),
]
