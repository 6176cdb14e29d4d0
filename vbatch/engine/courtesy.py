"""How a batch lets chat go first in one engine: by vLLM's scheduling policy, and by the sequences that it leaves free.

With the policy vLLM admits and keeps the request with the lowest priority first; but it preempts one only when its
KV cache is full, never for want of a sequence (vllm/v1/core/sched/scheduler.py, 0.32 and 0.33). So both are needed.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from vbatch.config import Settings
from vbatch.engine import Engine, flag_values
from vbatch.protocol import POOLING_ENDPOINTS, with_fields

PRIORITY = 1000  # of the requests of a batch; a chat has 0, and what is lower goes first
SHARE = 64  # of so many sequences one is left free
POLICY = "priority"

# The urls whose bodies have the field; vLLM's other ones would ignore it.
_PRIORITIZED = POOLING_ENDPOINTS - {"/v2/embed"} | {
    "/v1/chat/completions",
    "/v1/completions",
    "/v1/responses",
}


class _Prioritized(msgspec.Struct, gc=False):
    priority: int = 0


_decode = msgspec.json.Decoder(_Prioritized).decode


def flags(args: Sequence[str], *, chat: bool) -> tuple[str, ...]:
    """Return vLLM's flags with the policy before them, where there is chat and they name none."""
    named = flag_values.read(args).last(flag_values.SCHEDULING) is not None
    return ("--scheduling-policy", POLICY, *args) if chat and not named else tuple(args)


def behind(url: str, body: bytes) -> bytes:
    """Return a batch's body as an engine with the policy gets it: behind every chat.

    Requests that name a priority of their own keep their order among each other.
    """
    if url not in _PRIORITIZED:
        return body
    if b'"priority"' not in body and body.startswith(b'{"'):
        return b'{"priority":%d,%b' % (PRIORITY, body[1:])  # most bodies are not parsed for this
    try:
        own = _decode(body).priority
        return with_fields(body, {"priority": max(1, PRIORITY + own)})
    except (msgspec.DecodeError, ValueError):
        return body  # the engine refuses it, in its own words


def inflight_limit(engine: Engine, settings: Settings) -> int:
    """Return how many of a batch's requests to give to an engine at once.

    With chat, so many sequences stay free as ``chat_reserve`` says, or one of each 64; a batch keeps one in any case.
    """
    limit = settings.max_inflight or engine.max_inflight
    reserve = settings.chat_reserve
    free = max(1, engine.sequences // SHARE) if reserve is None else reserve
    return min(limit, max(1, engine.sequences - free)) if settings.chat and free else limit
