"""Models that workers could not load: why, where and since when; and the work that waits for them.

A row stays when its worker has ended, so that a person sees the reason in the morning. It goes when a worker of the
same host loads the model; that of one endpoint, when the loaded model answers there. Every function is one transaction
and safe to replay.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from sqlalchemy import (
    Connection,
    and_,
    case,
    delete,
    exists,
    false,
    func,
    insert,
    literal,
    or_,
    select,
    update,
)

from vbatch.errors import WrongStatus
from vbatch.store import events
from vbatch.store.database import Store
from vbatch.store.database.columns import NOW, UtcDateTime
from vbatch.store.records import SUBMITTED_AGAIN, BlockedModel, ChunkState, Span
from vbatch.store.tables import BATCH, BLOCKED, CHUNK, OPEN, READY, UNFINISHED, WAITING

_open = CHUNK.c.total - CHUNK.c.completed - CHUNK.c.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenWork:
    """Requests of a batch without a result, for one model and endpoint. ``waiting`` are not leased by a worker."""

    batch: int
    model: str
    url: str
    waiting: int
    running: int


def record(store: Store, blocked: BlockedModel) -> None:
    """Record that a model cannot be loaded. A block that stands already keeps its time, and gets the new reason.

    A row of the same host from another configuration is out of date: the configuration was changed. Its time is at the
    latest the database's: notifications are compared with it.
    """
    of_model = and_(
        BLOCKED.c.host == blocked.host, BLOCKED.c.model == blocked.model, BLOCKED.c.url == blocked.url
    )
    mine = and_(of_model, BLOCKED.c.configuration == blocked.configuration)

    def work(connection: Connection) -> None:
        connection.execute(delete(BLOCKED).where(of_model, BLOCKED.c.configuration != blocked.configuration))
        known = connection.execute(
            update(BLOCKED).where(mine).values(reason=blocked.reason, hint=blocked.hint)
        )
        if not known.rowcount:
            connection.execute(
                insert(BLOCKED).values(
                    configuration=blocked.configuration,
                    model=blocked.model,
                    url=blocked.url,
                    host=blocked.host,
                    reason=blocked.reason,
                    hint=blocked.hint,
                    since=case((literal(blocked.since, UtcDateTime()) < NOW, blocked.since), else_=NOW),
                )
            )
        events.record_blocked(connection, model=blocked.model, url=blocked.url)
        # What nothing waits for any more was cancelled, or submitted again for another model.
        of_endpoint = or_(BLOCKED.c.url == "", CHUNK.c.url == BLOCKED.c.url)
        wanted = exists().where(READY, CHUNK.c.model == BLOCKED.c.model, of_endpoint)
        connection.execute(delete(BLOCKED).where(~wanted))

    store.write(work)


def clear(store: Store, *, host: str, model: str, answers_at: Collection[str] | None) -> None:
    """Take back that a model is blocked on this host: it was loaded, and answers at these urls, or at all (None).

    The block of another endpoint stands: it is as old as it was, and is not notified again at each load.
    """
    mine = and_(BLOCKED.c.host == host, BLOCKED.c.model == model)
    if answers_at is not None:
        mine = and_(mine, BLOCKED.c.url.in_(["", *sorted(answers_at)]))
    if store.read(lambda connection: connection.execute(select(BLOCKED.c.model).where(mine).limit(1)).all()):
        store.write(lambda connection: connection.execute(delete(BLOCKED).where(mine)))


def known(store: Store) -> list[BlockedModel]:
    """Return what is blocked anywhere, the oldest block first."""
    rows = store.read(lambda connection: connection.execute(select(BLOCKED).order_by(BLOCKED.c.since)).all())
    return [
        BlockedModel(
            configuration=row.configuration,
            model=row.model,
            url=row.url,
            host=row.host,
            reason=row.reason,
            hint=row.hint,
            since=row.since,
        )
        for row in rows
    ]


def waiting(store: Store, *, pk: int, endpoints: Collection[tuple[str, str]]) -> list[Span]:
    """Return the chunks of a batch that wait for one of these models and urls; an empty url is all of the model's.

    Those that wait for the outcomes of identical requests are among them.
    """
    wanted = [
        and_(CHUNK.c.model == model, *([CHUNK.c.url == url] if url else [])) for model, url in endpoints
    ]
    query = (
        select(CHUNK.c.number, CHUNK.c.first_seq, CHUNK.c.last_seq)
        .where(CHUNK.c.batch == pk, or_(READY, WAITING), or_(false(), *wanted))
        .order_by(CHUNK.c.number)
    )
    return store.read(lambda connection: [Span(*row) for row in connection.execute(query)])


def waiting_urls(store: Store, *, model: str) -> list[str]:
    """Return the endpoints for which requests of a model wait."""
    query = select(CHUNK.c.url).where(READY, CHUNK.c.model == model).distinct()
    return store.read(lambda connection: list(connection.execute(query).scalars()))


def take_out(connection: Connection, *, pk: int, spans: Sequence[Span], new_id: str) -> None:
    """End these chunks of a batch, in the transaction that submits their requests again as ``new_id``.

    Raises WrongStatus where one of them does not wait any more: a worker can load the model now.
    """
    numbers = [span.number for span in spans]
    of_batch = and_(CHUNK.c.batch == pk, CHUNK.c.number.in_(numbers), or_(READY, WAITING))
    found = connection.execute(select(CHUNK.c.number).where(of_batch).with_for_update()).all()
    if len(found) != len(numbers):
        raise WrongStatus("a worker has begun with these requests: their model can be loaded now")
    connection.execute(
        update(CHUNK)
        .where(of_batch)
        .values(
            state=ChunkState.FAILED,
            failed=CHUNK.c.total - CHUNK.c.completed,
            error_code=SUBMITTED_AGAIN,
            error_message=f"This request was submitted again in {new_id}.",
        )
    )


def open_work(store: Store, *, batches: Sequence[int] | None = None) -> list[OpenWork]:
    """Return what is left of these unfinished batches, or of all of them."""
    waiting = func.sum(case((CHUNK.c.state == ChunkState.READY, _open), else_=0))
    running = func.sum(case((CHUNK.c.state == ChunkState.RUNNING, _open), else_=0))
    query = (
        select(CHUNK.c.batch, CHUNK.c.model, CHUNK.c.url, waiting.label("waiting"), running.label("running"))
        .join_from(CHUNK, BATCH, CHUNK.c.batch == BATCH.c.pk)
        .where(UNFINISHED, OPEN)
        .group_by(CHUNK.c.batch, CHUNK.c.model, CHUNK.c.url)
        .order_by(CHUNK.c.batch, CHUNK.c.model, CHUNK.c.url)
    )
    if batches is not None:
        query = query.where(CHUNK.c.batch.in_(batches))
    rows = store.read(lambda connection: connection.execute(query).all())
    return [
        OpenWork(
            batch=row.batch, model=row.model, url=row.url, waiting=int(row.waiting), running=int(row.running)
        )
        for row in rows
    ]
