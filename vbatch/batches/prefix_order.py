"""The order of work: requests that begin alike stand together, so that the engine's prefix cache serves them.

Measured (docs/performance.md): where the prefixes of a batch do not fit into the cache all together, a shuffled file
takes 1.7 times as long. The files of answers are not affected: they have the order of the input file.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from operator import itemgetter

from vbatch.store.ingest import Ingest

WINDOW_LINES = 65_536
WINDOW_BYTES = 64 << 20  # of bodies and prefixes that wait to be ordered
ROW_BYTES = 256  # what a request takes beside them
SHARED = 256  # bytes that two requests share, beyond what all share: some 64 tokens, four blocks of the cache
FEWEST = 20  # one in so many must share a prefix with another, or the file's order stays
LARGE_GROUP = 64  # requests: such a group begins a chunk, and its worker prefers its other chunks


Row = tuple[bytes, int, str, bytes]  # a request that waits: prefix, line, custom_id, body

_PREFIX, _BODY = itemgetter(0), itemgetter(3)


class PrefixOrder:
    """Hands requests on in the order of work, a window of them at a time; ``finish`` hands on the last ones.

    ``keep`` keeps the order of the file.
    """

    def __init__(self, storing: Ingest, *, keep: bool = False) -> None:
        self._storing = storing
        self._keep = keep
        self._waiting: dict[tuple[str, str], list[Row]] = {}
        self._lines = self._bytes = 0

    def add_all(self, rows: Sequence[Row], model: str, url: str) -> None:
        """Take requests of one model and url. Raises StoreUnreachable when the database becomes unreachable."""
        if self._keep:
            self._storing.add_all(rows, model, url)
            return
        while len(rows) > (room := WINDOW_LINES - self._lines):
            self.add_all(rows[:room], model, url)
            rows = rows[room:]
        self._waiting.setdefault((model, url), []).extend(rows)
        self._lines += len(rows)
        self._bytes += (
            sum(map(len, map(_BODY, rows))) + sum(map(len, map(_PREFIX, rows))) + ROW_BYTES * len(rows)
        )
        if self._lines >= WINDOW_LINES or self._bytes >= WINDOW_BYTES:
            self.finish()

    def add_duplicate(self, line: int, custom_id: str, model: str, body: bytes, url: str) -> None:
        """Take a request that gets the outcome of an identical one before it: it has no place in the order of work."""
        self._storing.add(line, custom_id, model, body, url, duplicate=True)

    def finish(self) -> None:
        """Hand on what waits."""
        for (model, url), rows in self._waiting.items():
            found = groups(rows)
            if not found:
                self._storing.add_all(rows, model, url)
                continue
            self._storing.begin_window(model, url)
            for begins, group in found:
                alike = hash((model, url, begins)) if len(group) >= LARGE_GROUP else None
                self._storing.begin_group(model, url, alike=alike, fewest=LARGE_GROUP)
                self._storing.add_all(group, model, url, grouped=True)
        self._waiting.clear()
        self._lines = self._bytes = 0


def groups(rows: Sequence[Row]) -> list[tuple[int, Sequence[Row]]]:
    """Return groups of requests that begin alike, those with the same prefix in the order of the file.

    Each has the hash of what its requests begin with. None where all have the same prefix, or hardly any two share one:
    the file's order is as good.
    """
    ordered = sorted(rows, key=_PREFIX)
    first, last = ordered[0][0], ordered[-1][0]
    if first == last:
        return []
    compared = _in_common(first, last) + SHARED
    begun = [hash(row[0][:compared]) for row in ordered]
    begins = [0, *(place for place, (before, now) in enumerate(pairwise(begun), 1) if before != now)]
    if (len(rows) - len(begins)) * FEWEST < len(rows):
        return []
    return [(begun[begin], ordered[begin:end]) for begin, end in pairwise([*begins, len(ordered)])]


def _in_common(one: bytes, other: bytes) -> int:
    """Return how many bytes both begin with."""
    pairs = zip(one, other, strict=False)
    return next((place for place, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
