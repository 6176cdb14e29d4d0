"""The kinds of database. What differs from one to another stands in its module here, and nowhere else.

A further kind is one more module with a class that has the shape of ``Backend``, and one more row of ``BACKENDS``.
"""

from __future__ import annotations

from vbatch.store.database.backends.postgresql import Postgresql
from vbatch.store.database.backends.protocol import Backend, not_understood, parse
from vbatch.store.database.backends.sqlite import Sqlite

BACKENDS: tuple[type[Backend], ...] = (Sqlite, Postgresql)


def backend_of(url: str) -> Backend:
    """Return the database that a URL names. Raises StoreMisconfigured for anything that is not one."""
    parsed = parse(url)
    for kind in BACKENDS:
        if parsed.drivername in kind.schemes:
            return kind(url)
    *others, last = (kind.dialect for kind in BACKENDS)
    raise not_understood(f"vbatch supports {', '.join(others)} and {last}, not {parsed.drivername!r}")
