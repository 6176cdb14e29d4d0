"""The wire types of the OpenAI Batch API: lines of input, output and error files, and the batch object.

Built on msgspec: ``Raw`` keeps the exact bytes of a part, so that a body is passed on as it was written.
"""

from __future__ import annotations

from enum import StrEnum

import msgspec
from msgspec import UNSET, Raw, UnsetType

# What a batch may ask for: the paths that `vllm serve` (0.32) answers to a POST with one JSON document.
ENDPOINTS = (
    "/v1/chat/completions",
    "/v1/chat/completions/batch",
    "/v1/completions",
    "/v1/responses",
    "/v1/messages",
    "/v1/messages/count_tokens",
    "/v1/systemone",
    "/inference/v1/generate",
    "/v1/embeddings",
    "/v2/embed",
    "/v1/score",
    "/score",
    "/v1/rerank",
    "/v2/rerank",
    "/rerank",
    "/classify",
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
)


class BatchStatus(StrEnum):
    """The eight statuses of the Batch API. Failed *requests* live in a ``completed`` batch."""

    VALIDATING = "validating"  # submit is still reading the input; invisible to everyone else
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


class BodyHead(msgspec.Struct, gc=False):
    """What vbatch itself reads of a body; the rest is the engine's business."""

    model: str | UnsetType | None = UNSET
    stream: bool | UnsetType | None = UNSET
    encoding_format: object = None


class Usage(msgspec.Struct, gc=False):
    """Token counts of an answer, under the names of chat completions or of responses and messages."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0


class _Usable(msgspec.Struct, gc=False):
    usage: Usage | None = None


class BatchError(msgspec.Struct, frozen=True):
    """Why a line was refused, in the vocabulary of the Batch API. ``line`` is 1-based."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class _Errors(msgspec.Struct):
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
    endpoint: str
    model: str | None
    errors: _Errors | None = None
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


_decode_usable = msgspec.json.Decoder(_Usable).decode
_decode_object = msgspec.json.Decoder(dict[str, Raw]).decode
_encoder = msgspec.json.Encoder()


def answer_line(*, line_id: str, custom_id: str, status_code: int, request_id: str, body: bytes) -> bytes:
    """Return the line of an answered request, newline included: its HTTP status and its body as it came.

    A 2xx line belongs into the output file; any other into the error file, where the body holds the error
    object and ``error`` is null.
    """
    response = _Response(status_code, request_id, Raw(body))
    return _encoder.encode(_OutputLine(line_id, custom_id, response, None)) + b"\n"


def no_answer_line(*, line_id: str, custom_id: str, code: str, message: str) -> bytes:
    """Return the error file's line of a request that never got an answer, newline included."""
    return _encoder.encode(_OutputLine(line_id, custom_id, None, _NoAnswer(code, message))) + b"\n"


def one_line_json(body: bytes) -> bytes:
    """Return a JSON document without line breaks: the document itself where it has none."""
    return msgspec.json.format(body, indent=-1) if b"\n" in body or b"\r" in body else body


def with_model(body: bytes, model: str) -> bytes:
    """Return a request body that names this model; every other field keeps its bytes."""
    fields = _decode_object(body)
    fields["model"] = Raw(_encoder.encode(model))
    return _encoder.encode(fields)


def usage_of(body: bytes) -> Usage:
    """Return the token counts of an answer; zeros where it has none. Raises ValueError where it is not JSON."""
    try:
        usage = _decode_usable(body).usage
    except msgspec.ValidationError:  # JSON of another shape, or bytes that only begin like it
        msgspec.json.decode(body)
        return Usage()
    if usage is None:
        return Usage()
    return Usage(
        prompt_tokens=usage.prompt_tokens or usage.input_tokens,
        completion_tokens=usage.completion_tokens or usage.output_tokens,
    )


def encode(document: object) -> bytes:
    """Return a document of these types as JSON."""
    return _encoder.encode(document)
