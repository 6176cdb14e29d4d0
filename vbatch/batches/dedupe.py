"""``--dedupe``: which requests of a batch run once for all that are identical, as they are stored.

Identical are the same bytes of body for the same model and endpoint. They are only taken together where the answer of
both would be the same: at temperature 0, with a seed, and where no text is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from typing import Protocol

import msgspec

from vbatch.batches.prefix_order import Row
from vbatch.protocol import POOLING_ENDPOINTS
from vbatch.store.duplicates import SeenBodies

Add = Callable[[Sequence[Row], str, str], None]


class Requests(Protocol):
    """What requests are given to."""

    def add_all(self, rows: Sequence[Row], model: str, url: str) -> None:
        """Take requests of one model and url that run."""
        ...

    def add_duplicate(self, line: int, custom_id: str, model: str, body: bytes, url: str) -> None:
        """Take a request that does not run: it is identical to one before it."""
        ...


# Nothing is drawn by chance at these: they measure, compare or count what they are given.
_WITHOUT_CHANCE = POOLING_ENDPOINTS | {"/tokenize", "/detokenize", "/v1/messages/count_tokens"}


class _Chance(msgspec.Struct, gc=False):
    """The fields of a body that decide whether its answer is drawn by chance."""

    temperature: float | None = None
    seed: int | None = None


_decode = msgspec.json.Decoder(_Chance).decode


def answers_alike(url: str, body: bytes) -> bool:
    """Return whether a body that is sent twice has the same answer."""
    if url in _WITHOUT_CHANCE:
        return True
    try:
        chance = _decode(body)
    except msgspec.MsgspecError:  # a temperature that is no number: the engine refuses it
        return False
    return chance.temperature == 0 or chance.seed is not None


@contextmanager
def adding(order: Requests, *, dedupe: bool) -> Iterator[Add]:
    """Return what stores a request; with ``dedupe`` it marks those that an earlier one is identical to."""
    if not dedupe:
        yield order.add_all
        return
    with closing(SeenBodies()) as seen:

        def add_all(rows: Sequence[Row], model: str, url: str) -> None:
            first: list[Row] = []
            for row in rows:
                _, line, custom_id, body = row
                if answers_alike(url, body) and not seen.is_new(model, url, body):
                    order.add_duplicate(line, custom_id, model, body, url)
                else:
                    first.append(row)
            if first:
                order.add_all(first, model, url)

        yield add_all
