"""Uploaded files and those that the server makes: what is known of them. Their content is on the disk of a host."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, and_, delete, func, insert, or_, select

from vbatch.store.database import Store
from vbatch.store.tables import FILE


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredFile:
    """A file. ``host`` is the machine whose disk has its content; ``bytes`` is the size of that."""

    id: str
    filename: str
    purpose: str
    bytes: int
    sha256: str
    created_at: datetime
    expires_at: datetime | None
    state: str
    host: str | None


def add(store: Store, file: StoredFile) -> None:
    """Enter a file whose content is on the disk. Entering it again changes nothing."""

    def work(connection: Connection) -> None:
        if connection.execute(select(FILE.c.id).where(FILE.c.id == file.id)).scalar() is None:
            values = {name: getattr(file, name) for name in StoredFile.__dataclass_fields__}
            connection.execute(insert(FILE).values(**values))

    store.write(work)


def get(store: Store, *, file_id: str) -> StoredFile | None:
    """Return a file, None where there is none of this id."""
    query = select(FILE).where(FILE.c.id == file_id)
    row = store.read(lambda connection: connection.execute(query).one_or_none())
    return None if row is None else _to_file(row)


def page(
    store: Store, *, limit: int, purpose: str | None, after: StoredFile | None, newest_first: bool
) -> list[StoredFile]:
    """Return at most ``limit`` files by their time, those after a file alone."""
    order = (FILE.c.created_at.desc(), FILE.c.id.desc()) if newest_first else (FILE.c.created_at, FILE.c.id)
    query = select(FILE).order_by(*order).limit(limit)
    if purpose is not None:
        query = query.where(FILE.c.purpose == purpose)
    if after is not None:
        at, same = FILE.c.created_at, FILE.c.created_at == after.created_at
        query = query.where(
            or_(at < after.created_at, and_(same, FILE.c.id < after.id))
            if newest_first
            else or_(at > after.created_at, and_(same, FILE.c.id > after.id))
        )
    return store.read(lambda connection: [_to_file(row) for row in connection.execute(query)])


def remove(store: Store, *, file_id: str) -> bool:
    """Forget a file. False where there is none of this id."""
    return store.write(
        lambda connection: connection.execute(delete(FILE).where(FILE.c.id == file_id)).rowcount > 0
    )


def expired(store: Store, *, now: datetime, host: str) -> list[StoredFile]:
    """Return the files of a host whose time has passed."""
    query = select(FILE).where(FILE.c.expires_at <= now, FILE.c.host == host)
    return store.read(lambda connection: [_to_file(row) for row in connection.execute(query)])


def known(store: Store, *, host: str) -> Collection[str]:
    """Return the ids of all files of a host."""
    query = select(FILE.c.id).where(FILE.c.host == host)
    return set(store.read(lambda connection: connection.execute(query).scalars().all()))


def total_bytes(store: Store, *, host: str) -> int:
    """Return how much all files of a host take."""
    query = select(func.coalesce(func.sum(FILE.c.bytes), 0)).where(FILE.c.host == host)
    return store.read(lambda connection: int(connection.execute(query).scalar_one()))


def _to_file(row: Any) -> StoredFile:
    return StoredFile(**{name: getattr(row, name) for name in StoredFile.__dataclass_fields__})
