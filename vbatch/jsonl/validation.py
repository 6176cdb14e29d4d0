"""Check the lines of an input file: a good line costs one decode, a bad one is explained in full.

The codes are the Batch API's own where it has one for the case.
"""

from __future__ import annotations

import difflib
import heapq
import re
from collections.abc import Callable
from typing import Any

import msgspec

from vbatch.jsonl import audio, not_json
from vbatch.jsonl.duplicates import SeenIds
from vbatch.jsonl.reading import LINE_LIMIT, Overlong
from vbatch.protocol import (
    AUDIO_ENDPOINTS,
    ENDPOINTS,
    INCOMPLETE,
    BatchError,
    BodyHead,
    ExactRequestLine,
    RequestLine,
)

SHOWN_DEFECTS = 100
MODELS = 1000  # whose names are not read again
FIRST_LINES = 3  # of those that share a defect
LONGEST_MODEL = 500  # characters: PostgreSQL's index of waiting work takes entries of up to 2,704 bytes

_decode_line = msgspec.json.Decoder(ExactRequestLine).decode
_decode_other = msgspec.json.Decoder(RequestLine).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_head = msgspec.json.Decoder(BodyHead).decode
_decode_name: Callable[[bytes], str | None] = msgspec.json.Decoder(str | None).decode
_REQUIRED = ("custom_id", "method", "url", "body")
_CHECKED = {"stream", "encoding_format", "file", "file_url"}  # fields that few bodies have
_UNCHECKED = BodyHead()
_NOT_JSON = ("bytes", "bytes_only")  # vLLM's encodings of embeddings that no line can hold
_PLACE = re.compile(r" \((?:at )?byte \d+\)")
_EARLIER = re.compile(r" on line \d+")


class Defects:
    """The bad lines of a file: the first hundred in full, and how many there are. They may come in any order."""

    def __init__(self) -> None:
        self.total = 0
        self._first: list[tuple[int, int, BatchError]] = []  # a heap: what comes last in the file is on top
        self._kinds: dict[tuple[str, str], list[int]] = {}  # code and kind: how many, and the first lines
        self.lines: set[int] | None = None  # of all bad lines, where they are asked for

    @property
    def shown(self) -> list[BatchError]:
        """The first hundred, in the order of the file."""
        return [defect for _, _, defect in sorted(self._first, reverse=True)]

    @property
    def shared(self) -> dict[tuple[str, str], tuple[int, list[int]]]:
        """The defects that many lines share: by code and kind, how many lines, and the first of them."""
        return {key: (many, lines) for key, (many, *lines) in self._kinds.items() if many > FIRST_LINES}

    def add(self, code: str, message: str, *, line: int | None = None, param: str | None = None) -> None:
        """Count one, and keep it while it is among the first."""
        self.total += 1
        if self.lines is not None and line is not None:
            self.lines.add(line)
        key = code, kind_of(message)
        kind = self._kinds.get(key)
        if kind is not None:
            kind[0] += 1
            if len(kind) <= FIRST_LINES or (line or 0) < kind[-1]:  # they may come in any order
                kind[1:] = sorted([*kind[1:], line or 0])[:FIRST_LINES]
        elif len(self._kinds) < SHOWN_DEFECTS:
            self._kinds[key] = [1, line or 0]
        entry = (-(line or 0), -self.total, BatchError(code=code, message=message, line=line, param=param))
        if len(self._first) < SHOWN_DEFECTS:
            heapq.heappush(self._first, entry)
        else:
            heapq.heappushpop(self._first, entry)

    def mark_cut_off(self, line: int) -> None:
        """Add to the defect of the last line, if it has one, that no line break ends it, which is why."""
        for position, (place, number, defect) in enumerate(self._first):
            if (
                defect.line == line
                and defect.code == "invalid_json_line"
                and defect.message != not_json.NO_LINE_FEED
            ):
                message = f"The last line is cut off: the file may be incomplete. {defect.message}"
                self._first[position] = (place, number, msgspec.structs.replace(defect, message=message))


class Validator:
    """Checks one line after the other, and at the end what only the whole file shows.

    ``model`` is what replaces the model of every line, None to keep each line's own. ``urls`` are those of the good
    lines, of which a file may have several. ``incomplete`` is whether what made the file says that lines are missing.
    ``beside`` are the fields beside ``body`` of the line that was checked last.
    """

    def __init__(self, *, model: str | None) -> None:
        self._model = model
        self._ids = SeenIds()
        self._models: dict[bytes, str | None] = {b"": None}  # as they stand in the file
        self._lines = 0
        self.urls: set[str] = set()
        self.defects = Defects()
        self.incomplete = False
        self.beside: tuple[str, ...] = ()

    def check(
        self, number: int, line: bytes | Overlong
    ) -> tuple[RequestLine, str, dict[str, msgspec.Raw]] | None:
        """Return the request, its model and the fields of its body; None for a bad line, which is among the defects."""
        self._lines += 1
        self.beside = ()
        try:
            request = self._decode(line)
            fields = _decode_fields(request.body)
            head = _UNCHECKED if _CHECKED.isdisjoint(fields) else _decode_head(request.body)
            named = bytes(fields.get("model", b""))
            own = self._models[named] if named in self._models else self._learn(named)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError) as error:
            known = self.defects.total
            self._explain(number, line)
            if self.defects.total == known:
                self.defects.add(
                    "invalid_json_line", f"The line cannot be read: {not_json.words(error)}", line=number
                )
            return None
        model = self._model or own
        if (
            request.url not in self.urls
            or request.method != "POST"
            or head.stream is True
            or head.encoding_format in _NOT_JSON
            or not model
            or not request.custom_id
            or "\0" in request.custom_id
            or "\0" in model
            or len(model) > LONGEST_MODEL
            or (request.url in AUDIO_ENDPOINTS and audio.defect(head) is not None)
            or not (line.isascii() or not_json.is_utf8(line))  # type: ignore[union-attr, arg-type]  # bytes, or it was no JSON
        ):
            defects = self.defects.total
            self._explain_request(number, line, request, head, model)
            if self.defects.total > defects:
                return None
        self._ids.add(request.custom_id, number)
        return request, model, fields  # type: ignore[return-value]  # a bad model is a defect

    def _decode(self, line: bytes | Overlong) -> RequestLine:
        try:
            return _decode_line(line)  # type: ignore[arg-type]  # an Overlong is a TypeError
        except msgspec.ValidationError:
            request = _decode_other(line)  # type: ignore[arg-type]  # bytes, or it was no JSON
            self.beside = tuple(name for name in _decode_fields(line) if name not in _REQUIRED)  # type: ignore[arg-type]  # as above
            return request

    def _learn(self, named: bytes) -> str | None:
        """Read the name of a model, and remember it. Raises ValidationError for what is no name."""
        model = _decode_name(named)
        if len(self._models) < MODELS and len(named) <= LONGEST_MODEL:
            self._models[named] = model
        return model

    def finish(self, *, cut_off: int | None) -> None:
        """Check what only the whole file shows. ``cut_off`` is the last line's number if no line break ends it."""
        for line, earlier in self._ids.duplicates():
            self.defects.add(
                "duplicate_custom_id",
                f"The custom_id of this line is already used on line {earlier}.",
                line=line,
                param="custom_id",
            )
        self._ids.close()
        if self._lines == 0:
            self.defects.add("empty_file", "The file holds no request.")
        if cut_off is not None:
            self.defects.mark_cut_off(cut_off)

    def _explain(self, number: int, line: bytes | Overlong) -> None:
        """Report why a line is not a request at all."""
        if isinstance(line, Overlong):
            self.defects.add("line_too_long", f"The line is longer than {LINE_LIMIT >> 20} MiB.", line=number)
            return
        reason = not_json.bytes_of(line)
        if reason is not None:
            self.defects.add("invalid_json_line", reason, line=number)
            return
        try:
            document = msgspec.json.decode(line)
        except (msgspec.MsgspecError, RecursionError) as error:
            self.defects.add("invalid_json_line", not_json.malformed(line, error), line=number)
            return
        self._explain_document(number, document)

    def _explain_document(self, number: int, document: Any) -> None:
        add = self.defects.add
        if not isinstance(document, dict):
            add("invalid_json_line", "The line is JSON, but not an object.", line=number)
            return
        if INCOMPLETE in document:
            self.incomplete = True
            add("incomplete_input", f"The requests before are not all: {document[INCOMPLETE]}.", line=number)
            return
        for key in _REQUIRED:
            expected = dict if key == "body" else str
            if key not in document or document[key] is None:
                add("missing_required_parameter", f"{key!r} is missing.", line=number, param=key)
            elif not isinstance(document[key], expected):
                kind = "an object" if key == "body" else "a string"
                add("invalid_type", f"{key!r} must be {kind}.", line=number, param=key)
        body = document.get("body")
        if isinstance(body, dict):
            if not isinstance(body.get("model"), str | None):
                add("invalid_type", "'body.model' must be a string.", line=number, param="body.model")
            if not isinstance(body.get("stream"), bool | None):
                add("invalid_type", "'body.stream' must be true or false.", line=number, param="body.stream")

    def _explain_request(
        self, number: int, line: Any, request: RequestLine, head: BodyHead, model: str | None
    ) -> None:
        add = self.defects.add
        if not not_json.is_utf8(line):
            add("invalid_json_line", not_json.bytes_of(line) or "This is not UTF-8.", line=number)
            return
        if request.method != "POST":
            add(
                "invalid_method",
                f"The method is {request.method!r}; it must be POST.",
                line=number,
                param="method",
            )
        if request.url not in ENDPOINTS:
            add("invalid_url", _no_endpoint(request.url), line=number, param="url")
        else:
            self.urls.add(request.url)
        if head.stream is True:
            add(
                "unsupported_parameter",
                "A batch cannot stream: remove 'stream'.",
                line=number,
                param="body.stream",
            )
        if head.encoding_format in _NOT_JSON:
            add(
                "unsupported_parameter",
                f"Answers in the encoding {head.encoding_format!r} are not JSON: use 'float' or 'base64'.",
                line=number,
                param="body.encoding_format",
            )
        if request.url in AUDIO_ENDPOINTS and (defect := audio.defect(head)) is not None:
            code, message, param = defect
            add(code, message, line=number, param=f"body.{param}")
        if not model:
            add(
                "model_not_found",
                "The body names no model; give one with -m.",
                line=number,
                param="body.model",
            )
        if not request.custom_id:
            add("missing_required_parameter", "'custom_id' is empty.", line=number, param="custom_id")
        if "\0" in request.custom_id:
            add("invalid_type", "'custom_id' holds a NUL character.", line=number, param="custom_id")
        if model and "\0" in model:
            add("invalid_type", "'body.model' holds a NUL character.", line=number, param="body.model")
        if model and len(model) > LONGEST_MODEL:
            add(
                "invalid_type",
                f"'body.model' has {len(model):,} characters; at most {LONGEST_MODEL:,} are allowed.",
                line=number,
                param="body.model",
            )


def kind_of(message: str) -> str:
    """Return a defect's message without the place, which differs in each line."""
    return _EARLIER.sub(" on an earlier line", _PLACE.sub("", message))


def _no_endpoint(url: str) -> str:
    """Say that there is no such endpoint, and which one is meant."""
    path = re.sub(r"^https?://[^/]*", "", url).rstrip("/")
    likely = [path, f"/v1{path}", f"/v1/{path}", *difflib.get_close_matches(path, ENDPOINTS, n=1, cutoff=0.5)]
    meant = next((endpoint for endpoint in likely if endpoint in ENDPOINTS), None)
    if meant is None:
        return f"There is no endpoint {url!r} (use one of {', '.join(ENDPOINTS)})."
    return f"There is no endpoint {url!r}; did you mean {meant!r}?"
