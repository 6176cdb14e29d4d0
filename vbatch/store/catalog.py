"""Batches as people see them: find, list, count, delete."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Select, and_, case, delete, exists, func, null, or_, select, text, update

from vbatch.errors import AmbiguousBatch, NoSuchBatch, WrongStatus
from vbatch.protocol import BatchStatus
from vbatch.store import tables
from vbatch.store.database import Store
from vbatch.store.records import Batch, ChunkState, RequestCounts
from vbatch.store.tables import OPEN, BatchRow, ChunkRow, RequestRow, ResultRow, WorkerRow

_batch = BatchRow.__table__  # type: ignore[attr-defined]
_chunk = ChunkRow.__table__  # type: ignore[attr-defined]
_request = RequestRow.__table__  # type: ignore[attr-defined]
_result = ResultRow.__table__  # type: ignore[attr-defined]
_worker = WorkerRow.__table__  # type: ignore[attr-defined]

_VISIBLE = _batch.c.status != BatchStatus.VALIDATING
_OPEN_CHUNK = exists().where(_chunk.c.batch == _batch.c.pk, text(f"chunk.{OPEN}"))
_UNFINISHED = and_(text(f"batch.{tables.UNFINISHED}"), _VISIBLE)
_DELETE_ROWS = 5000  # rows in one transaction of a delete, so that nobody waits long for it


@dataclass(frozen=True, slots=True, kw_only=True)
class QueueProgress:
    """All unfinished batches together. Counts are requests."""

    unfinished_batches: int
    total: int
    completed: int
    failed: int
    ready_chunks: int
    running_chunks: int


def find(store: Store, ref: str) -> Batch:
    """Return the batch with this id, or with a unique beginning or ending like it.

    Raises NoSuchBatch or AmbiguousBatch.
    """

    def work(connection: Connection) -> Batch:
        exact = connection.execute(select(_batch.c.pk).where(_batch.c.id == ref, _VISIBLE)).scalar()
        if exact is not None:
            return find_in(connection, exact)
        escaped = ref.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        candidates = connection.execute(
            select(_batch.c.pk, _batch.c.id)
            .where(
                _VISIBLE,
                or_(
                    _batch.c.id.like(f"{escaped}%", escape="\\"),
                    _batch.c.id.like(f"batch\\_{escaped}%", escape="\\"),
                    _batch.c.id.like(f"%{escaped}", escape="\\"),
                ),
            )
            .order_by(_batch.c.pk.desc())
            .limit(10)
        ).all()
        if not ref or not candidates:
            raise NoSuchBatch(f"there is no batch {ref!r}", hint="vbatch list")
        if len(candidates) > 1:
            names = ", ".join(row.id for row in candidates)
            raise AmbiguousBatch(f"{ref!r} matches several batches: {names}", hint="give more of the id")
        return find_in(connection, candidates[0].pk)

    return store.read(work)


def find_in(connection: Connection, pk: int) -> Batch:
    """Return a batch inside a transaction of the store. Raises NoSuchBatch where it was deleted meanwhile."""
    found = to_batches(connection, select(_batch).where(_batch.c.pk == pk))
    if not found:
        raise NoSuchBatch("the batch was deleted meanwhile", hint="vbatch list")
    return found[0]


def by_pk(store: Store, *, pk: int) -> Batch:
    """Return the batch with this primary key."""
    return store.read(lambda connection: find_in(connection, pk))


def recent(store: Store, *, limit: int, statuses: Collection[BatchStatus] | None = None) -> list[Batch]:
    """Return batches, the newest first."""
    query = select(_batch).where(_VISIBLE).order_by(_batch.c.pk.desc()).limit(limit)
    if statuses is not None:
        query = query.where(_batch.c.status.in_(statuses))
    return store.read(lambda connection: to_batches(connection, query))


def ids(store: Store, *, prefix: str) -> list[str]:
    """Return the ids that begin like this, the newest first, for completion on TAB."""
    query = (
        select(_batch.c.id)
        .where(_VISIBLE, _batch.c.id.startswith(prefix, autoescape=True))
        .order_by(_batch.c.pk.desc())
        .limit(100)
    )
    return store.read(lambda connection: list(connection.execute(query).scalars()))


def same_input(store: Store, *, input_sha256: str) -> list[Batch]:
    """Return the batches that were made of the same bytes, oldest first."""
    query = select(_batch).where(_VISIBLE, _batch.c.input_sha256 == input_sha256).order_by(_batch.c.pk)
    return store.read(lambda connection: to_batches(connection, query))


def from_path(store: Store, *, input_paths: Collection[str]) -> list[Batch]:
    """Return the batches that were made of the file that has these paths, newest first."""
    query = select(_batch).where(_VISIBLE, _batch.c.input_path.in_(input_paths)).order_by(_batch.c.pk.desc())
    return store.read(lambda connection: to_batches(connection, query))


def paths_in_use(store: Store, *, paths: Collection[str]) -> dict[str, Batch]:
    """Return which of these paths an unfinished batch will write, with that batch.

    One that is still validating is nobody's to see, but a submit at work that will write there all the same.
    """
    query = select(_batch).where(
        text(f"batch.{tables.UNFINISHED}"),
        or_(_batch.c.output_path.in_(paths), _batch.c.error_path.in_(paths)),
    )
    found = store.read(lambda connection: to_batches(connection, query))
    return {path: batch for batch in found for path in (batch.output_path, batch.error_path) if path in paths}


def still_there(connection: Connection, pk: int) -> None:
    """Raise NoSuchBatch where the batch was deleted, or is about to be: its rows are not whole any more."""
    if connection.execute(select(_batch.c.pk).where(_batch.c.pk == pk, _VISIBLE)).scalar() is None:
        raise NoSuchBatch("the batch was deleted meanwhile", hint="vbatch list")


def delete_batch(store: Store, *, pk: int, force: bool = False) -> None:
    """Remove a batch that has ended, its requests and results. Its files stay.

    With ``force`` also one whose requests have all ended but whose files could not be written.
    Raises WrongStatus.
    """
    batch, is_open = store.read(
        lambda connection: (
            find_in(connection, pk),
            bool(connection.execute(select(_OPEN_CHUNK).where(_batch.c.pk == pk)).scalar()),
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
    """Make a batch of this status one that nobody sees and anybody may remove. False where it has another one."""

    hidden = and_(
        _batch.c.status == BatchStatus.VALIDATING, _batch.c.submitter.is_(None)
    )  # by a lost COMMIT of ours

    def work(connection: Connection) -> bool:
        changed = connection.execute(
            update(_batch)
            .where(_batch.c.pk == pk, or_(_batch.c.status == was, hidden))
            .values(status=BatchStatus.VALIDATING, submitter=null())
        )
        return changed.rowcount == 1

    return store.write(work)


def remove_rows(store: Store, pk: int) -> None:
    """Remove everything of a batch that nobody sees, in short transactions. Several may do so at once."""
    remove_requests(store, pk)
    store.write(lambda connection: connection.execute(delete(_batch).where(_batch.c.pk == pk)))


def remove_requests(store: Store, pk: int) -> None:
    """Remove all that belongs to a batch that nobody sees, but for its own row."""
    for table in (_result, _request, _chunk):
        key = table.c.n if table is _chunk else table.c.seq
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
            func.coalesce(func.sum(_chunk.c.total), 0).label("total"),
            func.coalesce(func.sum(_chunk.c.completed), 0).label("completed"),
            func.coalesce(func.sum(_chunk.c.failed), 0).label("failed"),
            func.coalesce(func.sum(case((_chunk.c.state == ChunkState.READY, 1), else_=0)), 0).label("ready"),
            func.coalesce(func.sum(case((_chunk.c.state == ChunkState.RUNNING, 1), else_=0)), 0).label(
                "running"
            ),
        )
        .join(_batch, _batch.c.pk == _chunk.c.batch)
        .where(_UNFINISHED)
    )

    def work(connection: Connection) -> QueueProgress:
        unfinished = connection.execute(
            select(func.count()).select_from(_batch).where(_UNFINISHED)
        ).scalar_one()
        row = connection.execute(counted).one()
        return QueueProgress(
            unfinished_batches=unfinished,
            total=int(row.total),
            completed=int(row.completed),
            failed=int(row.failed),
            ready_chunks=int(row.ready),
            running_chunks=int(row.running),
        )

    return store.read(work)


def to_batches(connection: Connection, query: Select[Any]) -> list[Batch]:
    """Return the batches of a query inside a transaction of the store."""
    rows = connection.execute(query).all()
    sums = _sums(connection, [row.pk for row in rows])
    return [_to_batch(row, sums.get(row.pk)) for row in rows]


def _sums(connection: Connection, pks: Iterable[int]) -> dict[int, Any]:
    counted = select(
        _chunk.c.batch,
        func.sum(_chunk.c.completed).label("completed"),
        func.sum(_chunk.c.failed).label("failed"),
        func.sum(_chunk.c.prompt_tokens).label("prompt_tokens"),
        func.sum(_chunk.c.completion_tokens).label("completion_tokens"),
    ).where(_chunk.c.batch.in_(list(pks)))
    return {row.batch: row for row in connection.execute(counted.group_by(_chunk.c.batch))}


def _to_batch(row: Any, sums: Any | None) -> Batch:
    return Batch(
        pk=row.pk,
        id=row.id,
        status=BatchStatus(row.status),
        endpoint=row.endpoint,
        model=row.model,
        name=row.name,
        priority=row.priority,
        metadata=row.metadata,
        input_path=row.input_path,
        input_sha256=row.input_sha256,
        input_bytes=row.input_bytes,
        output_path=row.output_path,
        error_path=row.error_path,
        counts=RequestCounts(
            total=row.total,
            completed=int(sums.completed) if sums else 0,
            failed=int(sums.failed) if sums else 0,
        ),
        reused=row.reused,
        prompt_tokens=int(sums.prompt_tokens) if sums else 0,
        completion_tokens=int(sums.completion_tokens) if sums else 0,
        created_at=row.created_at,
        in_progress_at=row.in_progress_at,
        finalizing_at=row.finalizing_at,
        completed_at=row.completed_at,
        failed_at=row.failed_at,
        expired_at=row.expired_at,
        cancelling_at=row.cancelling_at,
        cancelled_at=row.cancelled_at,
        expires_at=row.expires_at,
    )
