"""What a ``seq`` says, and the requests of a range of them with their results, if they have any.

PostgreSQL does not infer from the range of the requests that their results are in it too. Where it merges the two, it
reads the results of the batch from the first on: a page behind 1,000,000 others took a second, and not a millisecond.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from sqlalchemy import and_

from vbatch.store.tables import REQUEST, RESULT, RESULT_OF_REQUEST

MODEL_SHIFT = 40  # seq = the ordinal of a run << 40 | the request's number in it; a run has one model and url
WINDOW_SHIFT = 16  # of a run with groups: each window begins at a multiple of 65,536
_GROUPED = 1 << 39

Range = Callable[[Any], Any]  # the condition, on either table


def first_of_run(ordinal: int, *, grouped: bool) -> int:
    """Return the first seq of a run. In one with ``grouped`` requests, lines ascend from window to window alone."""
    return ordinal << MODEL_SHIFT | (_GROUPED if grouped else 0)


def is_grouped(seq: int) -> bool:
    """Say whether a request is in a run whose windows were put into another order."""
    return bool(seq & _GROUPED)


def with_results(within: Range) -> Any:
    """Join requests with their results; the requests must be ``within`` the range, too."""
    return REQUEST.outerjoin(RESULT, and_(RESULT_OF_REQUEST, within(RESULT)))


def between(first: Any, last: Any) -> Range:
    """Return the range from the first to the last ``seq``."""
    return lambda table: table.c.seq.between(first, last)
