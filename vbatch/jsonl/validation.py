"""Check the lines of an input file: good ones many at once, a bad one by itself and explained in full.

The codes are the Batch API's own where it has one for the case.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass
from typing import Any

import msgspec

from vbatch.jsonl import audio, not_json
from vbatch.jsonl.defects import Defects
from vbatch.jsonl.duplicates import SeenIds
from vbatch.jsonl.reading import LINE_LIMIT, Overlong
from vbatch.protocol import (
    AUDIO_ENDPOINTS,
    ENDPOINTS,
    INCOMPLETE,
    BodyHead,
    ExactRequestLine,
    RequestLine,
)

MODELS = 1000  # whose names are not read again
LONGEST_MODEL = 500  # characters: PostgreSQL's index of waiting work takes entries of up to 2,704 bytes

_decode_line = msgspec.json.Decoder(ExactRequestLine).decode
_decode_other = msgspec.json.Decoder(RequestLine).decode
_decode_fields = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_decode_head = msgspec.json.Decoder(BodyHead).decode
_decode_name: Callable[[bytes], str | None] = msgspec.json.Decoder(str | None).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError, TypeError)
_REQUIRED = ("custom_id", "method", "url", "body")
_CHECKED = {"stream", "encoding_format", "file", "file_url"}  # fields that few bodies have
_UNCHECKED = BodyHead()
_NOT_JSON = ("bytes", "bytes_only")  # vLLM's encodings of embeddings that no line can hold


Fields = dict[str, msgspec.Raw]  # of a body, as they are written


@dataclass(frozen=True, slots=True)
class Checked:
    """Good requests of lines that follow each other, by what they have; ``shapes`` are the names in their bodies."""

    ids: list[str]
    models: list[str]
    urls: list[str]
    bodies: list[bytes]
    fields: list[Fields]
    shapes: Set[tuple[str, ...]]


class Validator:
    """Checks lines, many at once or one after the other, and at the end what only the whole file shows.

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

    def check_all(self, first: int, lines: Sequence[bytes | Overlong]) -> Checked | None:
        """Check many lines that are good and plain, in a third of the time that they take one by one.

        Returns None, and remembers none of them, where there may be another one: a blank, bad or rare one, or the
        first of its endpoint.
        """
        try:
            requests = list(map(_decode_line, lines))  # type: ignore[arg-type]  # an Overlong is a TypeError
            bodies = [bytes(request.body) for request in requests]
            fields = list(map(_decode_fields, bodies))
            named = [bytes(each.get("model", b"")) for each in fields]
            own = {name: self._model_of(name) for name in set(named)}
        except _UNREADABLE:
            return None
        ids = [request.custom_id for request in requests]
        urls = [request.url for request in requests]
        shapes = set(map(tuple, fields))
        if not (
            self.urls.issuperset(urls)
            and AUDIO_ENDPOINTS.isdisjoint(urls)
            and {request.method for request in requests} == {"POST"}
            and all(map(_CHECKED.isdisjoint, shapes))
            and all(_is_name(self._model or model) for model in own.values())
            and all(ids)
            and "\0" not in "".join(ids)
            and (all(map(bytes.isascii, lines)) or all(map(not_json.is_utf8, lines)))  # type: ignore[arg-type]  # decoded
        ):
            return None
        self._lines += len(ids)
        self._ids.add_all(ids, first)
        models = [self._model or own[name] for name in named]
        return Checked(ids, models, urls, bodies, fields, shapes)  # type: ignore[arg-type]  # each is a name

    def check(self, number: int, line: bytes | Overlong) -> tuple[RequestLine, str, Fields] | None:
        """Return the request, its model and the fields of its body; None for a bad line, which is among the defects."""
        self._lines += 1
        self.beside = ()
        try:
            request = self._decode(line)
            fields = _decode_fields(request.body)
            head = _UNCHECKED if _CHECKED.isdisjoint(fields) else _decode_head(request.body)
            own = self._model_of(bytes(fields.get("model", b"")))
        except _UNREADABLE as error:
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
            or not _is_name(model)
            or not request.custom_id
            or "\0" in request.custom_id
            or (request.url in AUDIO_ENDPOINTS and audio.defect(head) is not None)
            or not not_json.is_utf8(line)  # type: ignore[arg-type]  # bytes, or it was no JSON
        ):
            defects = self.defects.total
            self._explain_request(number, line, request, head, model)
            if self.defects.total > defects:
                return None
        self._ids.add_all([request.custom_id], number)
        return request, model, fields  # type: ignore[return-value]  # a bad model is a defect

    def _decode(self, line: bytes | Overlong) -> RequestLine:
        try:
            return _decode_line(line)  # type: ignore[arg-type]  # an Overlong is a TypeError
        except msgspec.ValidationError:
            request = _decode_other(line)  # type: ignore[arg-type]  # bytes, or it was no JSON
            self.beside = tuple(name for name in _decode_fields(line) if name not in _REQUIRED)  # type: ignore[arg-type]  # as above
            return request

    def _model_of(self, named: bytes) -> str | None:
        """Read the name of a model, once for all lines. Raises ValidationError for what is no name."""
        if named in self._models:
            return self._models[named]
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


def _is_name(model: str | None) -> bool:
    """Return whether a model can be called that."""
    return bool(model) and len(model) <= LONGEST_MODEL and "\0" not in model  # type: ignore[arg-type, operator]  # not None


def _no_endpoint(url: str) -> str:
    """Say that there is no such endpoint, and which one is meant."""
    path = re.sub(r"^https?://[^/]*", "", url).rstrip("/")
    likely = [path, f"/v1{path}", f"/v1/{path}", *difflib.get_close_matches(path, ENDPOINTS, n=1, cutoff=0.5)]
    meant = next((endpoint for endpoint in likely if endpoint in ENDPOINTS), None)
    if meant is None:
        return f"There is no endpoint {url!r} (use one of {', '.join(ENDPOINTS)})."
    return f"There is no endpoint {url!r}; did you mean {meant!r}?"
