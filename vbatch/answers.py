"""What an answer says of itself: its token counts, and why the engine stopped writing."""

from __future__ import annotations

import msgspec
from msgspec import Raw

CUT_OFF = "length"  # the finish of an answer that reached the limit of tokens
EMPTY = "empty"  # the finish of an answer that has no text and calls no tool, in place of its own
_LIMITS = ("max_output_tokens", "max_tokens")  # what responses and messages call it
_NOTHING = (b"null", b'""', b"[]")


class Facts(msgspec.Struct, gc=False):
    """What an answer says of itself: its token counts, and why the engine stopped writing (None: it does not say)."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    cached_tokens: int = 0
    finish: str | None = None


class _Cached(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct, gc=False):
    """Token counts under the names of chat completions, or of responses and messages."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    prompt_tokens_details: _Cached | None = None
    input_tokens_details: _Cached | None = None
    cache_read_input_tokens: int | None = None


class _Message(msgspec.Struct, gc=False):
    """What an answer of a chat may consist of. Reasoning alone is no answer."""

    content: Raw = Raw(b"null")
    tool_calls: Raw = Raw(b"null")
    function_call: Raw = Raw(b"null")
    refusal: Raw = Raw(b"null")
    audio: Raw = Raw(b"null")


class _Choice(msgspec.Struct, gc=False):
    finish_reason: str | None = None
    message: _Message | None = None
    text: Raw | None = None


class _Incomplete(msgspec.Struct, gc=False):
    reason: str | None = None


class _Answer(msgspec.Struct, gc=False):
    """Token counts, and why the engine stopped where chat completions, messages and responses say it."""

    usage: _Usage | None = None
    choices: list[_Choice] | None = None
    stop_reason: str | None = None
    status: str | None = None
    incomplete_details: _Incomplete | None = None
    output: Raw | None = None
    content: Raw | None = None


_decode_answer = msgspec.json.Decoder(_Answer).decode


def facts_of(body: bytes) -> Facts:
    """Return what an answer says of itself. Raises ValueError where it is not JSON."""
    try:
        answer = _decode_answer(body)
    except msgspec.ValidationError:  # JSON of another shape, or bytes that only begin like it
        msgspec.json.decode(body)
        return Facts()
    usage = answer.usage or _Usage()
    details = usage.prompt_tokens_details or usage.input_tokens_details
    return Facts(
        prompt_tokens=usage.prompt_tokens or usage.input_tokens,
        completion_tokens=usage.completion_tokens or usage.output_tokens,
        cached_tokens=(details.cached_tokens if details else usage.cache_read_input_tokens) or 0,
        finish=_finish_of(answer),
    )


def _finish_of(answer: _Answer) -> str | None:
    """Return why the engine stopped: ``CUT_OFF`` where any of several choices reached the limit of tokens."""
    if answer.choices:
        reasons = [choice.finish_reason for choice in answer.choices]
        if CUT_OFF in reasons:
            return CUT_OFF
        return EMPTY if all(map(_is_empty, answer.choices)) else reasons[0]
    details = answer.incomplete_details
    finish = (details.reason if details else None) or answer.stop_reason or answer.status
    if finish in _LIMITS:
        return CUT_OFF
    written = answer.output if answer.output is not None else answer.content
    return EMPTY if finish is not None and written is not None and _is_nothing(written) else finish


def _is_empty(choice: _Choice) -> bool:
    if choice.text is not None:
        return _is_nothing(choice.text)
    message = choice.message
    if message is None:
        return False
    parts = (message.content, message.tool_calls, message.function_call, message.refusal, message.audio)
    return all(map(_is_nothing, parts))


def _is_nothing(part: Raw) -> bool:
    """Compare without a copy: a part may have 100 MiB."""
    return memoryview(part) in _NOTHING
