"""Notifications: rows that are written with what they report, and delivered later, at least once.

Every function is one transaction. Who delivers an event takes it first, so that usually one process does; where that
one dies, the event is due again.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, and_, exists, func, insert, or_, select, update

from vbatch.protocol import BatchStatus
from vbatch.store.database import Store
from vbatch.store.database.columns import NOW
from vbatch.store.tables import BATCH, CHUNK, EVENT, PENDING, READY, UNFINISHED
from vbatch.store.tables import BLOCKED as BLOCKED_MODEL

TAKEN = timedelta(minutes=2)  # for one try: longer than the limit of a delivery
PAUSES = tuple(
    timedelta(minutes=minutes) for minutes in (1, 5, 15, 60, 180, 360)
)  # between tries; then the last one
LONGEST = timedelta(days=3)  # then it is given up
REPORTED = timedelta(days=7)  # by doctor; then it is forgotten
NEVER = datetime(9000, 1, 1, tzinfo=UTC)
BLOCKED = "vbatch.batch.blocked"


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """A notification. ``target`` is a URL or the name of a command; ``problem`` is why the last try failed.

    ``attempts`` are those before this one.
    """

    id: str
    batch: int
    type: str
    target: str
    created_at: datetime
    attempts: int
    problem: str | None


def record_end(connection: Connection, *, pk: int, status: BatchStatus) -> None:
    """Record, in the transaction that ends a batch, that its target is to be notified."""
    target = connection.execute(select(BATCH.c.notify).where(BATCH.c.pk == pk)).scalar()
    if target is not None:
        _insert(connection, pk, f"batch.{status}", target)


def record_blocked(connection: Connection, *, model: str, url: str) -> None:
    """Record that batches with requests waiting for this model are blocked, in the transaction that records the block.

    A batch gets one event for as long as the block stands, whichever host records it again, and also where it was
    submitted after that.
    """
    stands = select(func.min(BLOCKED_MODEL.c.since)).where(
        BLOCKED_MODEL.c.model == model, BLOCKED_MODEL.c.url == url
    )
    reported = exists().where(
        EVENT.c.batch == BATCH.c.pk, EVENT.c.type == BLOCKED, EVENT.c.created_at >= stands.scalar_subquery()
    )
    waiting = and_(READY, CHUNK.c.model == model, *([CHUNK.c.url == url] if url else []))
    query = (
        select(BATCH.c.pk, BATCH.c.notify)
        .join_from(BATCH, CHUNK, CHUNK.c.batch == BATCH.c.pk)
        .where(BATCH.c.notify.is_not(None), UNFINISHED, waiting, ~reported)
        .distinct()
    )
    for row in connection.execute(query).all():
        _insert(connection, row.pk, BLOCKED, row.notify)


def _insert(connection: Connection, pk: int, kind: str, target: str) -> None:
    connection.execute(
        insert(EVENT).values(
            id=f"evt_{secrets.token_hex(12)}", batch=pk, type=kind, target=target, created_at=NOW, next_at=NOW
        )
    )


def take_due(store: Store, *, names: Collection[str], batch: int | None = None) -> Event | None:
    """Take an event that is due, for one try; None where none is.

    Only one for a URL or for one of these ``names``: another process may know the others. ``batch``: of it alone.
    """
    while True:
        now = store.now()
        mine = and_(_due(now), _known(names), *([EVENT.c.batch == batch] if batch is not None else []))
        query = select(EVENT).where(mine).order_by(EVENT.c.next_at).limit(1)
        row = store.read(lambda connection, query=query: connection.execute(query).one_or_none())  # type: ignore[misc]
        if row is None:
            return None
        if store.write(lambda connection, row=row, now=now: _take(connection, row, now + TAKEN)):  # type: ignore[misc]
            return _event(row)


def _take(connection: Connection, row: Any, until: datetime) -> bool:
    """Take an event unless another process has; safe to replay, for then it is this very time that stands there."""
    same = EVENT.c.id == row.id
    taken = connection.execute(
        update(EVENT)
        .where(same, PENDING, EVENT.c.attempts == row.attempts, EVENT.c.next_at == row.next_at)
        .values(next_at=until, attempts=row.attempts + 1)
    )
    mine = and_(same, PENDING, EVENT.c.attempts == row.attempts + 1, EVENT.c.next_at == until)
    return bool(taken.rowcount) or connection.execute(select(EVENT.c.id).where(mine)).first() is not None


def _due(now: Any) -> Any:
    return and_(PENDING, EVENT.c.next_at <= now)


def _known(names: Collection[str]) -> Any:
    return or_(EVENT.c.target.contains("://"), EVENT.c.target.in_(list(names)))


def leave_unknown(store: Store, *, names: Collection[str], problem: str) -> list[Event]:
    """Record for events that are due why this process does not deliver them; return those that had no problem yet."""
    new = and_(_due(NOW), ~_known(names), EVENT.c.problem.is_(None))
    rows = store.read(lambda connection: connection.execute(select(EVENT).where(new)).all())
    if rows:
        ids = [row.id for row in rows]
        store.write(
            lambda connection: connection.execute(
                update(EVENT).where(EVENT.c.id.in_(ids), PENDING).values(problem=problem)
            )
        )
    return [_event(row) for row in rows]


def delivered(store: Store, event: Event) -> None:
    """Record that it was delivered."""
    store.write(
        lambda connection: connection.execute(
            update(EVENT).where(EVENT.c.id == event.id).values(delivered_at=NOW, problem=None)
        )
    )


def failed(store: Store, event: Event, problem: str) -> bool:
    """Record why a try failed, and when the next one is due; return whether there is one.

    Another process that has taken or delivered it since keeps it.
    """
    now = store.now()
    pause = PAUSES[min(event.attempts, len(PAUSES) - 1)]
    again = now + pause - event.created_at < LONGEST
    store.write(
        lambda connection: connection.execute(
            update(EVENT)
            .where(EVENT.c.id == event.id, PENDING, EVENT.c.attempts == event.attempts + 1)
            .values(problem=problem, next_at=now + pause if again else NEVER)
        )
    )
    return again


def in_trouble(store: Store) -> list[Event]:
    """Return the events of this week that could not be delivered, the newest first."""
    recent = and_(PENDING, EVENT.c.problem.is_not(None), EVENT.c.created_at > store.now() - REPORTED)
    query = select(EVENT).where(recent).order_by(EVENT.c.created_at.desc())
    rows = store.read(lambda connection: connection.execute(query.limit(20)).all())
    return [_event(row) for row in rows]


def _event(row: Any) -> Event:
    return Event(
        id=row.id,
        batch=row.batch,
        type=row.type,
        target=row.target,
        created_at=row.created_at,
        attempts=row.attempts,
        problem=row.problem,
    )
