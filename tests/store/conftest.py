"""A store whose every COMMIT is ambiguous: each transaction runs twice."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TypeVar

import pytest
from sqlalchemy import Connection

from vbatch.store import Store

T = TypeVar("T")


class Replaying(Store):
    """A store behind a network that loses the answer to every COMMIT: what was durable is done again."""

    def write(self, work: Callable[[Connection], T]) -> T:
        """Commit it, lose the answer, replay."""
        super().write(work)
        return super().write(work)


@pytest.fixture
def replaying(database_url: str) -> Iterator[Store]:
    """A fresh store that replays every transaction, once of each kind."""
    opened = Replaying(database_url)
    opened.prepare()
    yield opened
    opened.close()
