"""Batches as people see them: find, list, count, delete."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Connection, Select, and_, delete, func, null, or_, select, update

from vbatch.errors import AmbiguousBatch, NoSuchBatch, WrongStatus
from vbatch.protocol import BatchStatus
from vbatch.store.database import Store
from vbatch.store.records import Batch, RequestCounts
from vbatch.store.tables import (
    ACCEPTED,
    BATCH,
    CHUNK,
    EVENT,
    HAS_OPEN_CHUNK,
    NOT_FINAL,
    REQUEST,
    RESULT,
    UNFINISHED,
    VISIBLE,
)
from vbatch.system import processes

_DELETE_ROWS = 20_000  # rows in one transaction of a delete, so that no other writer waits long for it


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueProgress:
    """All unfinished batches together. Counts are requests."""

    unfinished_batches: int
    total: int
    completed: int
    failed: int


LAST = "last"


def find(store: Store, ref: str) -> Batch:
    """Return the batch that a person means: by its id, ``last``, its name, or a unique beginning or ending of its id.

    ``last`` is the newest batch that was submitted on this host. Raises NoSuchBatch or AmbiguousBatch.
    """

    def work(connection: Connection) -> Batch:
        for condition in _meanings(ref):
            candidates = connection.execute(
                select(BATCH.c.pk, BATCH.c.id).where(VISIBLE, condition).order_by(BATCH.c.pk.desc()).limit(10)
            ).all()
            if len(candidates) > 1 and ref != LAST:
                names = ", ".join(row.id for row in candidates)
                raise AmbiguousBatch(
                    f"{ref!r} matches several batches: {names}", hint="give the id, or more of it"
                )
            if candidates:
                return find_in(connection, candidates[0].pk)
        raise NoSuchBatch(f"there is no batch {ref!r}", hint="vbatch list")

    return store.read(work)


def _meanings(ref: str) -> Iterator[Any]:
    """Yield what a reference may mean, in the order in which it is tried."""
    if not ref:
        return
    yield BATCH.c.id == ref
    if ref == LAST:
        yield BATCH.c.host == processes.current().host
        yield BATCH.c.host.is_(None)
    yield BATCH.c.name == ref
    escaped = ref.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    yield or_(
        BATCH.c.id.like(f"{escaped}%", escape="\\"),
        BATCH.c.id.like(f"batch\\_{escaped}%", escape="\\"),
        BATCH.c.id.like(f"%{escaped}", escape="\\"),
    )


def find_in(connection: Connection, pk: int) -> Batch:
    """Return a batch inside a transaction of the store. Raises NoSuchBatch where it was deleted meanwhile."""
    found = to_batches(connection, select(BATCH).where(BATCH.c.pk == pk))
    if not found:
        raise NoSuchBatch("the batch was deleted meanwhile", hint="vbatch list")
    return found[0]


def by_pk(store: Store, *, pk: int) -> Batch:
    """Return the batch with this primary key."""
    return store.read(lambda connection: find_in(connection, pk))


def recent(
    store: Store,
    *,
    limit: int,
    statuses: Collection[BatchStatus] | None = None,
    name: str | None = None,
    after: int | None = None,
) -> list[Batch]:
    """Return batches, the newest first: all, those of some statuses, those of this name, those ``after`` a key."""
    query = select(BATCH).where(VISIBLE).order_by(BATCH.c.pk.desc()).limit(limit)
    if statuses is not None:
        query = query.where(BATCH.c.status.in_(statuses))
    if name is not None:
        query = query.where(BATCH.c.name == name)
    if after is not None:
        query = query.where(BATCH.c.pk < after)
    return store.read(lambda connection: to_batches(connection, query))


def ended_before(store: Store, *, moment: datetime) -> list[Batch]:
    """Return the batches that ended before this moment, the oldest first."""
    ends = (BATCH.c.completed_at, BATCH.c.failed_at, BATCH.c.expired_at, BATCH.c.cancelled_at)
    query = select(BATCH).where(ACCEPTED, ~NOT_FINAL, func.coalesce(*ends) < moment).order_by(BATCH.c.pk)
    return store.read(lambda connection: to_batches(connection, query))


def same_input(store: Store, *, input_sha256: str) -> list[Batch]:
    """Return the batches that were made of the same bytes, oldest first."""
    query = select(BATCH).where(VISIBLE, BATCH.c.input_sha256 == input_sha256).order_by(BATCH.c.pk)
    return store.read(lambda connection: to_batches(connection, query))


def from_path(store: Store, *, input_paths: Collection[str]) -> list[Batch]:
    """Return the batches that were made of the file that has these paths, newest first."""
    query = select(BATCH).where(VISIBLE, BATCH.c.input_path.in_(input_paths)).order_by(BATCH.c.pk.desc())
    return store.read(lambda connection: to_batches(connection, query))


def paths_in_use(store: Store, *, paths: Collection[str]) -> dict[str, Batch]:
    """Return which of these paths an unfinished batch will write, with that batch.

    One that is still validating is not visible, but its submit is running and will write there all the same.
    """
    query = select(BATCH).where(
        NOT_FINAL,
        or_(BATCH.c.output_path.in_(paths), BATCH.c.error_path.in_(paths)),
    )
    found = store.read(lambda connection: to_batches(connection, query))
    return {path: batch for batch in found for path in (batch.output_path, batch.error_path) if path in paths}


def still_there(connection: Connection, pk: int) -> None:
    """Raise NoSuchBatch where the batch was deleted, or is about to be: its rows are not whole any more."""
    if connection.execute(select(BATCH.c.pk).where(BATCH.c.pk == pk, VISIBLE)).scalar() is None:
        raise NoSuchBatch("the batch was deleted meanwhile", hint="vbatch list")


def delete_batch(store: Store, *, pk: int, force: bool = False) -> None:
    """Remove a batch that has ended, its requests and results. Its files stay.

    With ``force`` also one whose requests have all ended but whose files could not be written.
    Raises WrongStatus.
    """
    batch, is_open = store.read(
        lambda connection: (
            find_in(connection, pk),
            bool(connection.execute(select(HAS_OPEN_CHUNK).where(BATCH.c.pk == pk)).scalar()),
        )
    )
    if batch.status.final or (force and not is_open):
        if not hide(store, pk, was=batch.status):
            raise WrongStatus(f"{batch.id} has just ended", hint=f"vbatch status {batch.id}")
    elif is_open:
        raise WrongStatus(f"{batch.id} is still {batch.status}", hint=f"vbatch cancel {batch.id}")
    else:
        raise WrongStatus(
            f"{batch.id} is still {batch.status}: its files are not written yet",
            hint=f"vbatch results {batch.id} -o FILE, then: vbatch delete --force {batch.id}",
        )
    remove_rows(store, pk)


def hide(store: Store, pk: int, *, was: BatchStatus) -> bool:
    """Make a batch of this status one that is not visible and that any process may remove; False for another status."""

    hidden = and_(~VISIBLE, BATCH.c.submitter.is_(None))  # by an earlier try, whose COMMIT got no answer

    def work(connection: Connection) -> bool:
        changed = connection.execute(
            update(BATCH)
            .where(BATCH.c.pk == pk, or_(BATCH.c.status == was, hidden))
            .values(status=BatchStatus.VALIDATING, submitter=null(), asked=null())
        )
        return changed.rowcount == 1

    return store.write(work)


def remove_rows(store: Store, pk: int) -> None:
    """Remove everything of a batch that is not visible, in short transactions. Several processes may do so at once."""
    remove_requests(store, pk)

    def work(connection: Connection) -> None:
        connection.execute(delete(EVENT).where(EVENT.c.batch == pk))
        connection.execute(delete(BATCH).where(BATCH.c.pk == pk))

    store.write(work)


def remove_requests(store: Store, pk: int) -> None:
    """Remove all that belongs to a batch that is not visible, except its own row."""
    for table in (RESULT, REQUEST, CHUNK):
        key = table.c.number if table is CHUNK else table.c.seq
        while _remove_some(store, table, key, pk):
            pass


def _remove_some(store: Store, table: Any, key: Any, pk: int) -> bool:
    def work(connection: Connection) -> bool:
        last = connection.execute(
            select(key).where(table.c.batch == pk).order_by(key).offset(_DELETE_ROWS - 1).limit(1)
        ).scalar()
        matching = delete(table).where(table.c.batch == pk)
        connection.execute(matching if last is None else matching.where(key <= last))
        return last is not None

    return store.write(work)


def progress(store: Store) -> QueueProgress:
    """Return how far all unfinished batches are together."""
    counted = (
        select(
            func.coalesce(func.sum(CHUNK.c.total), 0).label("total"),
            func.coalesce(func.sum(CHUNK.c.completed), 0).label("completed"),
            func.coalesce(func.sum(CHUNK.c.failed), 0).label("failed"),
        )
        .join(BATCH, BATCH.c.pk == CHUNK.c.batch)
        .where(UNFINISHED)
    )

    def work(connection: Connection) -> QueueProgress:
        unfinished = connection.execute(
            select(func.count()).select_from(BATCH).where(UNFINISHED)
        ).scalar_one()
        row = connection.execute(counted).one()
        return QueueProgress(
            unfinished_batches=unfinished,
            total=int(row.total),
            completed=int(row.completed),
            failed=int(row.failed),
        )

    return store.read(work)


def to_batches(connection: Connection, query: Select[Any]) -> list[Batch]:
    """Return the batches of a query inside a transaction of the store."""
    rows = connection.execute(query).all()
    sums = _sums(connection, [row.pk for row in rows])
    return [_to_batch(row, sums.get(row.pk)) for row in rows]


def _sums(connection: Connection, pks: Iterable[int]) -> dict[int, Any]:
    counted = select(
        CHUNK.c.batch,
        func.sum(CHUNK.c.completed).label("completed"),
        func.sum(CHUNK.c.failed).label("failed"),
        func.sum(CHUNK.c.prompt_tokens).label("prompt_tokens"),
        func.sum(CHUNK.c.completion_tokens).label("completion_tokens"),
        func.sum(CHUNK.c.cached_tokens).label("cached_tokens"),
        func.sum(CHUNK.c.cut_off).label("cut_off"),
        func.sum(CHUNK.c.empty).label("empty"),
        func.max(CHUNK.c.epoch).label("epoch"),
    ).where(CHUNK.c.batch.in_(list(pks)))
    return {row.batch: row for row in connection.execute(counted.group_by(CHUNK.c.batch))}


# The columns of a batch that are not given as they are.
_OTHERWISE = frozenset({"status", "total", "submitter", "finalizer", "ignored", "errors"})
_AS_THEY_ARE = tuple(column.name for column in BATCH.c if column.name not in _OTHERWISE)


def _to_batch(row: Any, sums: Any | None) -> Batch:
    return Batch(
        **{name: getattr(row, name) for name in _AS_THEY_ARE},
        status=BatchStatus(row.status),
        counts=RequestCounts(
            total=row.total,
            completed=int(sums.completed) if sums else 0,
            failed=int(sums.failed) if sums else 0,
        ),
        ignored=tuple(row.ignored or ()),
        errors=tuple(row.errors or ()),
        prompt_tokens=int(sums.prompt_tokens) if sums else 0,
        completion_tokens=int(sums.completion_tokens) if sums else 0,
        cached_tokens=int(sums.cached_tokens) if sums else 0,
        cut_off=int(sums.cut_off) if sums else 0,
        empty=int(sums.empty) if sums else 0,
        begun=bool(sums and (sums.epoch or sums.completed or sums.failed)),
    )
