"""Columns that hold the same value in every database: their types, and how a table declares them."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import BigInteger, Column, DateTime, Dialect, Integer, Text, TypeDecorator
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement


class UtcDateTime(TypeDecorator[datetime]):
    """An aware UTC time. SQLite has no such type: there it is stored without its zone and comes back with it."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Refuse a naive time; store UTC."""
        if value is not None and value.tzinfo is None:
            raise ValueError("a time without a zone")
        return None if value is None else value.astimezone(UTC)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:  # noqa: ARG002
        """Return an aware UTC time."""
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


SQLITE_NOW = "vbatch_now"  # a function that every connection of vbatch has: SQLite's own counts milliseconds


def sqlite_now() -> str:
    """Return the time as SQLite's columns hold it."""
    return f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S.%f}"


class _Now(FunctionElement[datetime]):
    type = UtcDateTime()
    inherit_cache = True


@compiles(_Now)
def _by_the_server(*_: Any, **__: Any) -> str:
    return "statement_timestamp()"


@compiles(_Now, "sqlite")
def _by_this_host(*_: Any, **__: Any) -> str:
    return f"{SQLITE_NOW}()"


# The time by the database's clock: the only one that all hosts share. What several of them compare is recorded by it.
NOW = _Now()


class AnyText(TypeDecorator[str]):
    """Text from elsewhere: an engine's last words, a process's title.

    They may hold what PostgreSQL's text cannot (NUL) or UTF-8 cannot (lone surrogates, from undecodable
    bytes); that must never stop what is being recorded with them.
    """

    impl = Text
    cache_ok = True

    def process_bind_param(self, value: str | None, dialect: Dialect) -> str | None:  # noqa: ARG002
        """Replace what cannot be stored."""
        return None if value is None else _UNSTORABLE.sub("\N{REPLACEMENT CHARACTER}", value)


_UNSTORABLE = re.compile("[\0\ud800-\udfff]")

# SQLite makes only an INTEGER PRIMARY KEY the row's own id.
Id = BigInteger().with_variant(Integer(), "sqlite")


def text(**options: Any) -> Any:
    """Return a column: text."""
    return Column(Text(), nullable=options.pop("nullable", False), **options)


def words() -> Any:
    """Return a column: text from elsewhere, which may hold anything."""
    return Column(AnyText(), nullable=True)


def integer(**options: Any) -> Any:
    """Return a column: a number of 32 bits."""
    return Column(Integer(), nullable=False, **options)


def big(**options: Any) -> Any:
    """Return a column: a number of 64 bits."""
    return Column(BigInteger(), nullable=False, **options)


def time(*, nullable: bool = True) -> Any:
    """Return a column: a time."""
    return Column(UtcDateTime(), nullable=nullable)
