"""Which database a URL names, in the form the store needs, and in the form a person may see."""

from __future__ import annotations

from pathlib import Path

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from vbatch.errors import StoreMisconfigured

_SECRETS = ("password", "sslpassword")  # that libpq takes from the options of a URL too
POSTGRESQL_PORT = 5432
_HINT = "set VBATCH_DATABASE_URL to sqlite:////path/to/vbatch.db or postgresql://user:password@host/database"


def parse_url(url: str) -> URL:
    """Return the URL with its driver made explicit.

    Raises StoreMisconfigured for anything but SQLite and PostgreSQL, and for what can only be a mistake.
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        raise StoreMisconfigured("the database URL cannot be understood", hint=_HINT) from None
    match parsed.drivername:
        case "sqlite" | "sqlite+pysqlite":
            if not parsed.database or parsed.database == ":memory:":
                raise StoreMisconfigured("the SQLite URL names no file", hint=_HINT)
            return parsed.set(drivername="sqlite+pysqlite")
        case "postgresql" | "postgres" | "postgresql+psycopg":
            return _checked(parsed.set(drivername="postgresql+psycopg"), url)
        case other:
            raise StoreMisconfigured(f"vbatch supports sqlite and postgresql, not {other!r}", hint=_HINT)


def _checked(parsed: URL, given: str) -> URL:
    """Refuse what would show a part of the password as the host's name, and ports that are no numbers."""
    if given.partition("?")[0].count("@") > 1:
        raise StoreMisconfigured(
            "the database URL has more than one @; within a user, password or database it is written %40",
            hint=_HINT,
        )
    try:
        parsed.get_dialect()().create_connect_args(parsed)
    except (ArgumentError, ValueError):
        raise StoreMisconfigured("the database URL cannot be understood", hint=_HINT) from None
    return parsed


def is_sqlite(url: URL) -> bool:
    """Whether it is a file of our own rather than a server."""
    return url.get_backend_name() == "sqlite"


def sqlite_path(url: URL) -> Path:
    """Return the file of a SQLite URL."""
    assert url.database is not None
    return Path(url.database)


def server(url: URL) -> tuple[str, int]:
    """Return host and port of a PostgreSQL URL; of several servers (libpq takes lists) those of the first one.

    The host is a folder for a socket, and empty for the socket that libpq takes by itself.
    """
    return url.host or _first(url, "host"), url.port or int(_first(url, "port") or POSTGRESQL_PORT)


def _first(url: URL, option: str) -> str:
    given = url.query.get(option, "")
    return (given if isinstance(given, str) else given[0]).partition(",")[0]


def shown(url: URL) -> str:
    """Return the URL without its password, wherever that stands in it."""
    return url.difference_update_query(_SECRETS).render_as_string(hide_password=True)
