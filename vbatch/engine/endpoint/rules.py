"""What an answer of another server means: for the request, or for the server.

429 and 503 are about the server, which is full or starting; 401, 402, 403, an exhausted quota and an unknown model or
route are about its configuration. None of these is an attempt of a request. All else is the request's own answer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from email.utils import parsedate_to_datetime
from enum import StrEnum

import msgspec

from vbatch.answers import facts_of
from vbatch.engine import Reply
from vbatch.engine.endpoint.client import Answer
from vbatch.text import one_line

LONGEST_PAUSE = 3600.0  # seconds: what a server may ask for with Retry-After
_SHOWN = 300  # characters of a server's own words
_ABOUT_MODEL = re.compile(r"\bmodel\b", re.IGNORECASE)
_QUOTA = ("insufficient_quota", "billing_hard_limit_reached", "billing_not_active")


class Scope(StrEnum):
    """What of a server is blocked."""

    ALL = "all"
    MODEL = "model"
    ROUTE = "route"


@dataclass(frozen=True, slots=True, kw_only=True)
class Full:
    """The server takes no more now. ``pause``: seconds that it asks for; ``reply`` is what it said."""

    pause: float | None
    reply: Reply


@dataclass(frozen=True, slots=True, kw_only=True)
class Closed:
    """A person must change something before the server can answer. ``reason`` continues "the endpoint …".

    ``about_key``: another key is needed, or one at all.
    """

    scope: Scope
    reason: str
    hint: str
    about_key: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Cut:
    """The answer is not whole: as if the connection had broken."""

    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Answered:
    """The request's own answer. ``tokens`` were written for it."""

    reply: Reply
    tokens: int = 0


class _Error(msgspec.Struct, gc=False):
    message: str = ""
    code: str | int | None = None
    type: str | None = None
    param: str | None = None


class _Document(msgspec.Struct, gc=False):
    """OpenAI's error object, and vLLM's own of older versions, which stands alone."""

    error: _Error | None = None
    message: str | None = None
    code: str | int | None = None
    type: str | None = None
    param: str | None = None


class _Model(msgspec.Struct, gc=False):
    id: str


class _Models(msgspec.Struct, gc=False):
    data: list[_Model]


_decode = msgspec.json.Decoder(_Document).decode
_decode_list = msgspec.json.Decoder(_Models).decode
_encode = msgspec.json.Encoder().encode


def judge(answer: Answer) -> Answered | Full | Closed | Cut:  # noqa: PLR0911  (a table)
    """Return what an answer to a request means."""
    status = answer.status
    if 200 <= status < 300:
        return _good(answer)
    if 300 <= status < 400:
        return _redirect(answer)
    error = _error(answer.body)
    words = one_line(error.message, limit=_SHOWN) if error is not None and error.message else f"HTTP {status}"
    if error is not None and (error.code in _QUOTA or error.type in _QUOTA):
        return Closed(
            scope=Scope.ALL, reason=f"has no quota left: {words}", hint="see the plan of the account"
        )
    match status:
        case 401 | 403:
            reason = f"refuses the key (HTTP {status}): {words}"
            return Closed(scope=Scope.ALL, reason=reason, hint="give it the right key", about_key=True)
        case 402:
            reason = f"asks for a payment (HTTP 402): {words}"
            return Closed(scope=Scope.ALL, reason=reason, hint="see the plan of the account")
        case 404 if (scope := _missing(error)) is not None:
            what = "model" if scope is Scope.MODEL else "route"
            reason = f"does not know the {what} (HTTP 404): {words}"
            return Closed(scope=scope, reason=reason, hint="vbatch retry ID -m MODEL, or another server")
        case 429 | 503:
            reply = replace(_reply(answer, error), retry_after=0.0)  # it is the server that pauses
            return Full(pause=retry_after(answer.headers), reply=reply)
    return Answered(reply=_reply(answer, error))


def models_in(answer: Answer) -> frozenset[str] | None:
    """Return the models that a server lists; None where the answer is no such list."""
    try:
        return frozenset(model.id for model in _decode_list(answer.body).data)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return how many seconds a server asks to wait, from both forms of the header; never more than an hour.

    A date counts from the server's own, where it gives one: its clock may be wrong.
    """
    given = headers.get("Retry-After", "").strip()
    if not given:
        return None
    try:
        seconds = float(given) if re.fullmatch(r"\d+(\.\d+)?", given) else _until(given, headers.get("Date"))
    except (ValueError, TypeError, OverflowError):
        return None
    return min(max(0.0, seconds), LONGEST_PAUSE)


def _until(date: str, present: str | None) -> float:
    now = time.time()
    if present:
        now = parsedate_to_datetime(present).timestamp()
    return parsedate_to_datetime(date).timestamp() - now


def _good(answer: Answer) -> Answered | Closed | Cut:
    """Tell JSON that was cut off, and a web page, from an answer; bytes of another kind are one."""
    reply = Reply(status=answer.status, body=answer.body, request_id=_request_id(answer))
    try:
        return Answered(reply=reply, tokens=facts_of(answer.body).completion_tokens)
    except ValueError:
        kind = answer.headers.get("Content-Type", "")
    if kind.startswith("text/html"):
        return Closed(
            scope=Scope.ALL,
            reason="answers with a web page, not with JSON",
            hint="give the address below which it has /v1/models",
        )
    if not answer.body or kind.startswith("application/json") or answer.body[:1] in b"{[":
        return Cut(cause="the JSON of the answer ends in the middle")
    return Answered(reply=reply)


def _redirect(answer: Answer) -> Closed:
    """Follow none: the body, and the key, would go to a server that no configuration names."""
    target = one_line(answer.headers.get("Location", "nowhere").partition("?")[0], limit=_SHOWN)
    return Closed(
        scope=Scope.ALL,
        reason=f"redirects to {target} (HTTP {answer.status}), and vbatch follows no redirect",
        hint="give the address that it redirects to, if it is the right one",
    )


def _missing(error: _Error | None) -> Scope | None:
    """Return whether the model or the route is what was not found; None where it is something that a request names."""
    if error is None:
        return Scope.ROUTE  # no API's words: a router's ({"detail": "Not Found"}), or a page
    if error.param == "model" or error.code == "model_not_found":
        return Scope.MODEL
    if error.param is None and _ABOUT_MODEL.search(error.message):
        return Scope.MODEL
    lowered = error.message.lower()
    if not error.message or lowered in ("not found", "notfound") or "url" in lowered or "route" in lowered:
        return Scope.ROUTE
    return None


def _error(body: bytes) -> _Error | None:
    try:
        document = _decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
    if document.error is not None:
        return document.error
    if document.message is None:
        return None
    return _Error(message=document.message, code=document.code, type=document.type, param=document.param)


def _reply(answer: Answer, error: _Error | None) -> Reply:
    """Return an error of the request; one that is no JSON, such as a proxy's page, in OpenAI's words."""
    body = answer.body
    if error is None:
        try:
            msgspec.json.decode(body)
        except (msgspec.DecodeError, UnicodeDecodeError):
            text = one_line(body[:_SHOWN].decode(errors="replace"), limit=_SHOWN) or f"HTTP {answer.status}"
            body = _encode(
                {"error": {"message": text, "type": "server_error", "param": None, "code": answer.status}}
            )
    return Reply(
        status=answer.status,
        body=body,
        request_id=_request_id(answer),
        retry_after=retry_after(answer.headers),
    )


def _request_id(answer: Answer) -> str | None:
    given = answer.headers.get("X-Request-Id")
    return one_line(given, limit=100) if given else None
