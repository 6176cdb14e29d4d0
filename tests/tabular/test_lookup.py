"""Values by key: streaming in their own order, by an index in another one; the first of several counts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from vbatch.tabular import lookup
from vbatch.tabular.lookup import Lookup


def of(values: list[tuple[str, int]]) -> Lookup[int]:
    @contextmanager
    def opened() -> Iterator[Iterator[tuple[str, int]]]:
        yield iter(values)

    return Lookup(opened)


def test_the_first_of_several_counts_also_where_it_was_passed_over() -> None:
    """Mutant: a key that was passed over is looked for further on, and the second value is found."""
    with of([("b", 1), ("a", 2), ("b", 3)]) as found:
        assert (found.get("a"), found.is_indexed) == (2, False)
        assert (found.get("b"), found.is_indexed) == (1, True)


def test_what_was_passed_over_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant: the set of what was passed over grows with the table."""
    monkeypatch.setattr(lookup, "PASSED", 10)
    values = [(str(number), number) for number in range(100)]
    with of(values) as found:
        assert [found.get(str(number)) for number in range(9)] == list(range(9))
        assert (found.get("15"), found.is_indexed) == (15, False)
        assert (found.get("40"), found.is_indexed) == (40, True)
        assert (found.get("12"), found.get("none")) == (12, None)
