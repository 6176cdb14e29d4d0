"""The wire types of the OpenAI Batch API: lines of input, output and error files, and the batch object.

Built on msgspec: ``Raw`` keeps the exact bytes of a part, so that a body is passed on as it was written.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import msgspec
from msgspec import UNSET, Raw, UnsetType

_MEASURING = (
    "/v1/embeddings",
    "/v2/embed",
    "/v1/score",
    "/score",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/classify",
)

# What a batch may ask for: the paths that `vllm serve` (0.32) answers to a POST with one JSON document.
ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/systemone",
    "/v1/decisions",
    "/inference/v1/generate",
    *_MEASURING,
    "/generative_scoring",
    "/pooling",
    "/tokenize",
    "/detokenize",
    "/v1/chat/completions/render",
    "/v1/chat/completions/derender",
    "/v1/completions/render",
    "/v1/completions/derender",
    "/v1/responses/render",
    "/v1/messages/render",
    "/v1/audio/transcriptions",
    "/v1/audio/translations",
)

# Those of pooling models: they draw nothing by chance.
POOLING_ENDPOINTS = frozenset({*_MEASURING, "/pooling"})

# Those that take a form with a file, not JSON: a request names the file in ``file_url``, as `vllm run-batch` has it.
AUDIO_ENDPOINTS = frozenset({"/v1/audio/transcriptions", "/v1/audio/translations"})

INCOMPLETE = (
    "vbatch_incomplete"  # the field of a line that is no request, and says why the lines before are not all
)

# What a worker with chat answers beside its batch.
CHAT_PATHS = ("/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/embeddings", "/v1/messages")
MODELS_PATH = "/v1/models"


class BatchStatus(StrEnum):
    """The eight statuses of the Batch API. Failed *requests* live in a ``completed`` batch."""

    VALIDATING = "validating"  # its input is still being read; of a submit invisible to everyone else
    FAILED = "failed"  # refused at validation
    IN_PROGRESS = "in_progress"  # accepted; its chunks are ready or running
    FINALIZING = "finalizing"  # every request has its result; the files are being written
    COMPLETED = "completed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"  # no new request starts; running ones are being stopped
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether the batch will never change again."""
        return self in _FINAL


_FINAL = frozenset({BatchStatus.FAILED, BatchStatus.COMPLETED, BatchStatus.EXPIRED, BatchStatus.CANCELLED})


class RequestLine(msgspec.Struct, gc=False):
    """A line of an input file. ``body`` keeps its bytes. Unknown fields are ignored, as OpenAI does."""

    custom_id: str
    method: str
    url: str
    body: Raw


class ExactRequestLine(RequestLine, gc=False, forbid_unknown_fields=True):
    """A line with these fields and no others, as nearly all are."""


class BodyHead(msgspec.Struct, gc=False):
    """What vbatch checks of a body; the rest is the engine's business."""

    model: str | UnsetType | None = UNSET
    stream: bool | UnsetType | None = UNSET
    encoding_format: object = None
    file_url: Raw | UnsetType = UNSET
    file: Raw | UnsetType = UNSET


class BatchError(msgspec.Struct, frozen=True):
    """Why a line was refused, in the vocabulary of the Batch API. ``line`` is 1-based."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchErrors(msgspec.Struct):
    """The bad lines of a batch that failed."""

    data: list[BatchError]
    object: str = "list"


class Counts(msgspec.Struct, frozen=True):
    """``request_counts`` of a batch object."""

    total: int
    completed: int
    failed: int


class _TokenDetails(msgspec.Struct):
    cached_tokens: int = 0


class _OutputDetails(msgspec.Struct):
    reasoning_tokens: int = 0


class BatchUsage(msgspec.Struct):
    """Token counts of a batch so far."""

    input_tokens: int
    output_tokens: int
    total_tokens: int
    input_tokens_details: _TokenDetails = msgspec.field(default_factory=_TokenDetails)
    output_tokens_details: _OutputDetails = msgspec.field(default_factory=_OutputDetails)


class BatchObject(msgspec.Struct, kw_only=True):
    """The batch object: OpenAI's fields, then vbatch's own. Times are Unix seconds, as OpenAI has them."""

    id: str
    object: str = "batch"
    endpoint: str | None
    model: str | None
    errors: BatchErrors | None = None
    input_file_id: str
    completion_window: str
    status: BatchStatus
    output_file_id: str | None
    error_file_id: str | None
    created_at: int
    in_progress_at: int | None
    expires_at: int | None
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: Counts
    usage: BatchUsage
    metadata: dict[str, str] | None
    name: str | None
    priority: int
    reused: int
    input_path: str | None
    output_path: str
    error_path: str


class _Response(msgspec.Struct):
    status_code: int
    request_id: str
    body: Raw


class _NoAnswer(msgspec.Struct):
    code: str
    message: str


class _OutputLine(msgspec.Struct):
    id: str
    custom_id: str
    response: _Response | None
    error: _NoAnswer | None


_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_encoder = msgspec.json.Encoder()
_AFTER_BODY = b'},"error":null}'  # of the line of an answered request
_BREAKS = ((b"\xe2\x80\xa8", b"\\u2028"), (b"\xe2\x80\xa9", b"\\u2029"), (b"\xc2\x85", b"\\u0085"))


def unbroken(line: bytes) -> bytes:
    """Escape what some readers take for the end of a line, though JSON does not: U+2028, U+2029, U+0085."""
    if line.isascii():
        return line
    for raw, escaped in _BREAKS:
        if raw in line:
            line = line.replace(raw, escaped)
    return line


def answer_line(*, line_id: str, custom_id: str, status_code: int, request_id: str, body: bytes) -> bytes:
    """Return the line of an answered request, newline included: its HTTP status and its body as it came.

    A 2xx line belongs into the output file; any other into the error file, where the body holds the error
    object and ``error`` is null.
    """
    response = _Response(status_code, request_id, Raw(b""))
    line = _encoder.encode(_OutputLine(line_id, custom_id, response, None))
    head = line.removesuffix(_AFTER_BODY)
    return unbroken(b"".join((head, body, _AFTER_BODY, b"\n")))  # one copy of a body that may be large


def no_answer_line(*, line_id: str, custom_id: str, code: str, message: str) -> bytes:
    """Return the error file's line of a request that never got an answer, newline included."""
    return unbroken(_encoder.encode(_OutputLine(line_id, custom_id, None, _NoAnswer(code, message)))) + b"\n"


def request_line(custom_id: str, url: str, body: Mapping[str, Any]) -> bytes:
    """Return the line of a request, newline included. Raises ValueError for NaN and infinity."""
    request = RequestLine(custom_id, "POST", url, Raw(encode_exactly(body)))
    return unbroken(_encoder.encode(request)) + b"\n"


def incomplete_line(reason: str) -> bytes:
    """Return the last line of requests of which more were to follow: whoever reads them refuses them all."""
    return unbroken(_encoder.encode({INCOMPLETE: reason})) + b"\n"


def one_line_json(body: bytes) -> bytes:
    """Return a JSON document without line breaks: the document itself where it has none."""
    return msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body


def with_model(body: bytes, model: str) -> bytes:
    """Return a request body that names this model; every other field keeps its bytes."""
    return with_fields(body, {"model": model})


def with_fields(body: bytes, changes: Mapping[str, Any]) -> bytes:
    """Return a request body with these fields; None removes one. Every other field keeps its bytes."""
    fields = _decode_object(body)
    for name, value in changes.items():
        if value is None:
            fields.pop(name, None)
        else:
            fields[name] = Raw(_encoder.encode(value))
    return _encoder.encode(fields)


def encode(document: object) -> bytes:
    """Return a document of these types as JSON."""
    return _encoder.encode(document)


def encode_exactly(document: object) -> bytes:
    """Return a document of a person as JSON. Raises ValueError for NaN and infinity, which ``encode`` makes null."""
    encoded = _encoder.encode(document)
    if b"null" in encoded:
        try:
            json.dumps(document, allow_nan=False, default=msgspec.to_builtins)
        except ValueError:
            raise ValueError("it holds NaN or infinity, which JSON does not have") from None
    return encoded
