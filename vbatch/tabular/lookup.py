"""Find values by their key: streaming while they are asked for in their own order, else by an index.

The values are read on until one has the key; so values of the same order are read once, and none is held. When the
end is reached in vain, or a key was passed over before, all of them go into an index: a temporary database of SQLite,
which has no name, so that nothing is left of it however the process ends.
"""

from __future__ import annotations

import pickle
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Generic, Self, TypeVar

from vbatch.errors import TableError

T = TypeVar("T")
Open = Callable[[], AbstractContextManager[Iterator[tuple[str, T]]]]

_CACHE = -16_384  # KiB of memory that the index may use
PASSED = 100_000  # keys that are remembered as passed over, some 10 MiB; beyond that there is an index


class Lookup(Generic[T]):
    """Values by key, the first where several have one. ``open_values`` begins to read them."""

    def __init__(self, open_values: Open[T]) -> None:
        self._open = open_values
        self._opened: AbstractContextManager[Iterator[tuple[str, T]]] | None = None
        self._values: Iterator[tuple[str, T]] = iter(())
        self._index: _Index[T] | None = None
        self._passed: set[int] = set()

    def __enter__(self) -> Self:
        self._opened = self._open()
        self._values = self._opened.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        if self._opened is not None:
            self._opened.__exit__(None, None, None)
            self._opened = None
        if self._index is not None:
            self._index.close()

    @property
    def is_indexed(self) -> bool:
        """Whether the order was another one, so that an index had to be made."""
        return self._index is not None

    def get(self, key: str) -> T | None:
        """Return the value with this key; None without one."""
        if self._index is None:
            if hash(key) not in self._passed:  # else the next value with this key may not be the first
                for found, value in self._values:
                    if found == key:
                        return value
                    self._passed.add(hash(found))
                    if len(self._passed) > PASSED:
                        break
            with self._open() as values:
                self._index = _Index(values)
            self._passed.clear()
        return self._index.get(key)


class _Index(Generic[T]):
    """Values by key, on the disk."""

    def __init__(self, values: Iterator[tuple[str, T]]) -> None:
        self._database = sqlite3.connect("", isolation_level=None)  # "": temporary, without a name
        self._database.execute(f"PRAGMA cache_size = {_CACHE}")
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute("CREATE TABLE value (key BLOB PRIMARY KEY, value BLOB) WITHOUT ROWID")
        self._database.execute("BEGIN")
        try:
            self._database.executemany(
                "INSERT OR IGNORE INTO value VALUES (?, ?)",
                ((key.encode(), pickle.dumps(value)) for key, value in values),
            )
        except sqlite3.OperationalError as error:
            raise TableError(
                f"the index of the table cannot be written: {error}",
                hint="export SQLITE_TMPDIR=/a/folder/with/space",
            ) from None
        self._database.execute("COMMIT")

    def get(self, key: str) -> T | None:
        found = self._database.execute("SELECT value FROM value WHERE key = ?", (key.encode(),)).fetchone()
        value: T | None = None if found is None else pickle.loads(found[0])
        return value

    def close(self) -> None:
        self._database.close()
