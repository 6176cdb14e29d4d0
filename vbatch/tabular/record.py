"""The flat record of a finished request: one row of a table, whatever the endpoint was.

Its fields are a contract: they are added to, never changed. ``docs/tables.md`` describes them for people.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import StrEnum
from typing import Any

from vbatch.answers import CUT_OFF, EMPTY
from vbatch.tabular.answers import Said, error_of, said
from vbatch.tabular.prompts import prompt_of


class RecordStatus(StrEnum):
    """What became of a request, in one word."""

    ANSWERED = "answered"
    CUT_OFF = "cut_off"  # an answer that ended at the limit of tokens
    EMPTY = "empty"  # an answer without a text and without a tool call
    FAILED = "failed"


@dataclass(frozen=True, slots=True, kw_only=True)
class Record:
    """One finished request.

    ``line`` is its place in the input file (1-based), ``batch_id`` the batch that its answer is of. ``prompt`` is
    the last text that the user gave, ``answer`` the text of the answer, or JSON where it is no text: scores, ranks,
    several choices. ``embedding`` is the vector of a request for one embedding. ``tool_calls`` is JSON.
    ``status_code`` and ``error_code`` are those of the two files; ``error`` is the message of a failed request.
    """

    custom_id: str
    prompt: str | None = None
    answer: str | None = None
    reasoning: str | None = None
    tool_calls: str | None = None
    embedding: Sequence[float] | None = None
    finish_reason: str | None = None
    status: RecordStatus
    error_code: str | None = None
    error: str | None = None
    model: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    status_code: int | None = None
    attempts: int = 1
    endpoint: str
    batch_id: str
    line: int


NAMES = tuple(field.name for field in fields(Record))
NUMBERS = frozenset(
    {"line", "status_code", "prompt_tokens", "completion_tokens", "cached_tokens", "attempts"}
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """What a record is made of: a request's body and the answer's, and what the store recorded beside them.

    ``body`` is None where there was no answer; then ``error_code`` and ``error_message`` say why.
    """

    custom_id: str
    line: int
    batch_id: str
    model: str
    url: str
    request: bytes
    status_code: int | None
    body: bytes | None
    error_code: str | None
    error_message: str | None
    finish: str | None
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int
    attempts: int

    @property
    def succeeded(self) -> bool:
        """Whether the answer is one of status 2xx."""
        return self.status_code is not None and 200 <= self.status_code < 300


def record_of(source: Source) -> Record:
    """Return the flat record of a finished request."""
    answered: dict[str, Any]
    if source.succeeded:
        found = said(source.url, source.body or b"null")
        answered = _answered(source, found)
    else:
        code, message = error_of(source.body or b"null")
        if source.error_code is not None:
            code, message = source.error_code, source.error_message
        answered = {"status": RecordStatus.FAILED, "error_code": code or _http(source), "error": message}
    return Record(
        custom_id=source.custom_id,
        line=source.line,
        batch_id=source.batch_id,
        model=source.model,
        endpoint=source.url,
        prompt=prompt_of(source.request),
        status_code=source.status_code,
        attempts=source.attempts,
        **answered,
    )


def _answered(source: Source, found: Said) -> dict[str, Any]:
    finish = {CUT_OFF: RecordStatus.CUT_OFF, EMPTY: RecordStatus.EMPTY}.get(source.finish or "")
    return {
        "status": finish or RecordStatus.ANSWERED,
        "answer": found.text,
        "reasoning": found.reasoning,
        "tool_calls": found.tool_calls,
        "embedding": found.embedding,
        "finish_reason": found.finish_reason,
        "prompt_tokens": source.prompt_tokens,
        "completion_tokens": source.completion_tokens,
        "cached_tokens": source.cached_tokens,
    }


def _http(source: Source) -> str:
    return f"http_{source.status_code}"
