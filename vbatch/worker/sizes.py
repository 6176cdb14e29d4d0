"""How many bytes an answer is expected to take, before it is there.

Learned from the answers before it, for each batch and endpoint by itself. Of the first ones nothing is known. A text
that a model writes is small: a token at a time, as many as the engine has memory for. Anything else (vectors, the
probabilities of each token) may have 100 MiB, so its requests start with a few, and three more for each answer: 200 run
after four rounds of answers.
"""

from __future__ import annotations

from typing import NamedTuple

from vbatch.protocol import AUDIO_ENDPOINTS
from vbatch.store.records import Lease, Request

MEMORY = 32  # answers whose sizes count for what the next ones are expected to take
STEP = 3  # requests of unknown answers at first, and more of them for each answer
_KINDS = 64  # of which the sizes are kept

_TEXT = AUDIO_ENDPOINTS | {"/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages"}
_MORE_THAN_TEXT = b"logprobs"  # top_logprobs, prompt_logprobs: many numbers for each token


class Kind(NamedTuple):
    """Requests whose answers are likely to have one size."""

    batch: int
    url: str
    text: bool  # the answer is text that a model writes, and nothing else


class _Seen:
    def __init__(self) -> None:
        self.answers = 0
        self.running = 0
        self.mean = 0.0


class Sizes:
    """The sizes of answers by their kind, and what those that run are expected to take together, of ``most`` bytes."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._seen: dict[Kind, _Seen] = {}

    def expected(self, kind: Kind) -> float:
        """Return how many bytes the answer to one more request is expected to take."""
        seen = self._seen.get(kind) or _Seen()
        if kind.text:
            return seen.mean
        return max(seen.mean, self._most / (STEP * (1 + seen.answers)))

    def running(self) -> float:
        """Return how many bytes the answers to all that runs are expected to take."""
        return sum(seen.running * self.expected(kind) for kind, seen in self._seen.items() if seen.running)

    def start(self, kind: Kind) -> None:
        """Count a request that starts."""
        self._seen[kind] = seen = self._seen.pop(kind, None) or _Seen()  # the newest is the last
        seen.running += 1
        if len(self._seen) > _KINDS:
            oldest = next((kind for kind, seen in self._seen.items() if not seen.running), None)
            if oldest is not None:
                del self._seen[oldest]

    def end(self, kind: Kind) -> None:
        """Count a request that ended, however."""
        self._seen[kind].running -= 1

    def learn(self, kind: Kind, size: int) -> None:
        """Take the size of an answer of a request that still runs."""
        seen = self._seen[kind]
        seen.answers += 1
        seen.mean += (size - seen.mean) / min(seen.answers, MEMORY)


def kind_of(lease: Lease, request: Request) -> Kind:
    """Return the kind of a request."""
    text = lease.url in _TEXT and _MORE_THAN_TEXT not in request.body
    return Kind(lease.key.batch, lease.url, text)
