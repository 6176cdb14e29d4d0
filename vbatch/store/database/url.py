"""The URL of a database, as a person gave it and as a person may see it."""

from __future__ import annotations

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError

from vbatch.errors import StoreMisconfigured

_SECRETS = ("password", "sslpassword")  # libpq takes these from the options of a URL too
_HINT = "set VBATCH_DATABASE_URL to sqlite:////path/to/vbatch.db or postgresql://user:password@host/database"


def parse(url: str) -> URL:
    """Split a URL into its parts. Raises StoreMisconfigured."""
    try:
        return make_url(url)
    except (ArgumentError, ValueError):
        raise not_understood() from None


def shown(url: URL) -> str:
    """Return the URL without its password, wherever that stands in it."""
    return url.difference_update_query(_SECRETS).render_as_string(hide_password=True)


def not_understood(problem: str = "the database URL cannot be understood") -> StoreMisconfigured:
    """Return the error for a URL with this problem."""
    return StoreMisconfigured(problem, hint=_HINT)
