"""Which database a URL names, in the form the store needs, and in the form a person may see."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from vbatch.errors import StoreMisconfigured

_HINT = "set VBATCH_DATABASE_URL to sqlite:////path/to/vbatch.db or postgresql://user:password@host/database"


def parse_url(url: str) -> URL:
    """Return the URL with its driver made explicit.

    Raises StoreMisconfigured for anything but SQLite and PostgreSQL.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StoreMisconfigured("The database URL cannot be understood.", hint=_HINT) from None
    match parsed.drivername:
        case "sqlite" | "sqlite+pysqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise StoreMisconfigured("The SQLite URL names no file.", hint=_HINT)
            return parsed.set(drivername="sqlite+pysqlite")
        case "postgresql" | "postgres" | "postgresql+psycopg":
            return parsed.set(drivername="postgresql+psycopg")
        case other:
            raise StoreMisconfigured(f"vbatch knows no database called {other!r}.", hint=_HINT)


def is_sqlite(url: URL) -> bool:
    """Whether it is a file of our own rather than a server."""
    return url.get_backend_name() == "sqlite"


def sqlite_path(url: URL) -> Path:
    """Return the file of a SQLite URL."""
    assert url.database is not None
    return Path(url.database)


def shown(url: URL) -> str:
    """Return the URL without its password."""
    return url.render_as_string(hide_password=True)
