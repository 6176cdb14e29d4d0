"""Ids that stand on two lines are found whether or not the ids fit into memory."""

from __future__ import annotations

import pytest

from vbatch.jsonl.duplicates import SeenIds


@pytest.mark.parametrize("spill_ids", [3, 1000, 1_000_000])
def test_each_repeated_id_is_found_with_its_first_line(spill_ids: int) -> None:
    """Mutant: forgetting what was moved to the file."""
    seen = SeenIds(spill_ids=spill_ids)
    for number in range(1, 5001):
        seen.add_all([f"id-{number % 4990}"], number)
    assert sorted(seen.duplicates()) == [(4990 + n, n) for n in range(1, 11)]
    seen.close()


def test_no_ids_no_duplicates() -> None:
    seen = SeenIds()
    assert list(seen.duplicates()) == []
    seen.close()


def test_an_id_on_three_lines_is_told_twice() -> None:
    seen = SeenIds()
    for number in (1, 5, 9):
        seen.add_all(["same"], number)
    assert [later for later, _ in sorted(seen.duplicates())] == [5, 9]
    seen.close()
