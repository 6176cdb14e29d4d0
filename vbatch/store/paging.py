"""Cut rows into pages that fit into memory: so many rows and so many bytes at most, whatever the rows are like."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

PAGE = 1000  # rows
PAGE_BYTES = 16 << 20  # of bodies; one body alone may be larger


def pages(rows: Iterable[Any], *, most: int = PAGE) -> Iterator[list[Any]]:
    """Yield the rows in pages, never an empty one. ``row.size`` is what its body takes, None without a body."""
    page: list[Any] = []
    held = 0
    for row in rows:
        size = row.size or 0
        if page and (len(page) >= most or held + size > PAGE_BYTES):
            yield page
            page, held = [], 0
        page.append(row)
        held += size
    if page:
        yield page
