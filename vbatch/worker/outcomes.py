"""What a reply of the engine, or none, becomes in the store, and whether a request is tried again."""

from __future__ import annotations

import random

from vbatch.answers import facts_of
from vbatch.engine import Reply
from vbatch.store.records import Outcome

SHOWN_BYTES = 200  # of an answer that is not JSON


def worth_retrying(status: int) -> bool:
    """Whether another attempt may succeed: after 429 and 5xx."""
    return status == 429 or status >= 500


def backoff(attempt: int, retry_after: float | None) -> float:
    """Seconds before the next attempt: what the engine asks for, else 1, 2, … with jitter."""
    return retry_after if retry_after is not None else 2 ** (attempt - 1) * random.uniform(0.5, 1.5)


def answered(attempt: int, reply: Reply) -> Outcome:
    """Return what an answer becomes, an HTTP error too."""
    try:
        facts = facts_of(reply.body)
    except ValueError:
        return _not_json(attempt, reply)
    return Outcome(
        status_code=reply.status,
        request_id=reply.request_id,
        body=reply.body,
        prompt_tokens=facts.prompt_tokens,
        completion_tokens=facts.completion_tokens,
        cached_tokens=facts.cached_tokens,
        finish=facts.finish,
        attempts=attempt,
    )


def _not_json(attempt: int, reply: Reply) -> Outcome:
    """Keep out what no line of an output file can hold, such as embeddings as bytes."""
    return Outcome(
        request_id=reply.request_id,
        error_code="answer_not_json",
        error_message=f"The engine answered with status {reply.status} and {len(reply.body):,} bytes "
        f"that are not JSON: {reply.body[:SHOWN_BYTES].decode(errors='replace')}",
        attempts=attempt,
    )


def timed_out(attempt: int, seconds: float | None) -> Outcome:
    """Return what a request becomes that took longer than ``request_timeout``, in seconds."""
    return Outcome(
        error_code="request_timeout",
        error_message=f"The engine did not answer within {seconds:g} s (request_timeout).",
        attempts=attempt,
    )
