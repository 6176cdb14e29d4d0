"""Find the request that ends engines or whole workers, and blame no other for it.

**An engine crashed.** A chunk whose requests were in the engine at one crash is given back as it is: crashes have many
causes. At the second crash it is split: what was not in the engine is innocent, what was is halved, and each half
runs alone from then on (``queue.claim``). A crash while a single request of such a half runs alone convicts it. So
one poisonous request of a full chunk costs at most log2(chunk) + 2 engine crashes.

**A worker crashed**, or SIGKILL ended its engine. Most are ended from outside: a closed terminal, ``kill -9``, the OOM
killer. Nothing is left to report what was running, so what the worker held is counted (``worker_crashes``, in a row
without any result of the chunk in between), and at the third crash halved as above. A request that was all that the
worker held runs alone from then on, and before each further attempt of it another request of its model runs alone, if
there is one (``first``): a comparison, counted (``comparisons``) when it ends on the same boot of the same machine. A
request is convicted

* at 3 crashes while it ran alone, if a comparison ended between them: this machine runs other requests, not this one;
* at 10 crashes while it ran alone, where there was nothing to compare it with.

The count starts again where something else is a better explanation: the worker had received a signal, the machine
was booted since the last crash (``crash_boot``), other workers died within the same seconds, or a living worker gave
the request back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Connection, func, insert, select, update

from vbatch.store.ranges import between, with_results
from vbatch.store.records import SPLIT_AT, ChunkState
from vbatch.store.tables import (
    BATCH,
    CHUNK,
    OPEN,
    READY,
    REQUEST,
    RESULT,
    UNRECORDED,
    WORKER,
    same_chunk,
)

WORKER_CRASHES = 3  # in a row: a chunk is halved, a request that was compared with another is convicted
UNCOMPARED_WORKER_CRASHES = 10  # in a row, of a request that could not be compared with any other


def engine_crashed(
    connection: Connection, row: Any, suspects: Sequence[int], cause: str, *, alone: bool
) -> None:
    """Deal with an engine crash over these requests (``seq``, ascending) of a running chunk.

    ``alone`` says that the engine had one request only, of whatever chunk.
    """
    crashes = row.engine_crashes + 1
    if crashes < SPLIT_AT:
        _give_back(connection, row, engine_crashes=crashes)
    elif alone and row.engine_crashes >= SPLIT_AT:
        message = (
            f"The engine died while this request ran alone, after {row.engine_crashes} deaths with its chunk in the "
            f"engine; the last time: {cause}"
        )
        _convict(connection, row, suspects[0], message, attempts=crashes)
    else:
        _split(connection, row, suspects, crashes)


def worker_crashed(connection: Connection, row: Any, *, boot: str | None, alone: bool) -> None:
    """Deal with a worker that is gone while it held this chunk, and (``alone``) no other.

    ``boot`` is the boot on which it crashed; None where something from outside ended it.
    """
    if boot is None:
        _give_back(connection, row, worker_crashes=0)
        return
    ran_alone = alone and _one_is_open(row)
    in_a_row = row.crash_boot == boot and row.worker_crashes > 0 and (row.alone or not ran_alone)
    crashes = row.worker_crashes + 1 if in_a_row else 1
    comparisons = row.comparisons if in_a_row else 0
    if ran_alone and _convicts(crashes, comparisons):
        (seq,) = _open(connection, row)
        _convict(connection, row, seq, _evidence(crashes, comparisons), attempts=crashes)
    elif ran_alone or crashes < WORKER_CRASHES:
        _give_back(
            connection,
            row,
            worker_crashes=crashes,
            comparisons=comparisons,
            crash_boot=boot,
            alone=row.alone or ran_alone,
        )
    elif suspects := _open(connection, row):
        _split(connection, row, suspects, row.engine_crashes)


def would_blame(row: Any) -> bool:
    """Whether one more worker crash over this chunk may convict a request."""
    return bool(row.alone and _one_is_open(row) and _convicts(row.worker_crashes + 1, row.comparisons))


def first(connection: Connection, row: Any, boot: str | None) -> Any:
    """Return what is to be leased before this chunk that runs alone: one request to compare it with, else itself.

    That is a request of another ready chunk, preferably of one that no worker crashed over. ``boot`` is that of the
    worker that claims: on another one than that of the crashes there is nothing to compare.
    """
    if not _one_is_open(row) or row.worker_crashes <= row.comparisons or row.crash_boot != boot:
        return row
    other = connection.execute(
        select(CHUNK)
        .where(
            READY, CHUNK.c.model == row.model, CHUNK.c.worker_crashes <= row.worker_crashes, ~same_chunk(row)
        )
        .order_by(
            CHUNK.c.alone, CHUNK.c.worker_crashes, CHUNK.c.priority.desc(), CHUNK.c.batch, CHUNK.c.number
        )
        .limit(1)
        .with_for_update(skip_locked=True)
    ).one_or_none()
    if other is None:
        return row
    number = other.number
    if other.total == 1:
        connection.execute(update(CHUNK).where(same_chunk(other)).values(alone=True))
    else:
        compared, *rest = _open(connection, other)
        kept = {name: getattr(other, name) for name in _HISTORY}
        number = _cut(connection, other, [([compared], {"alone": True}), (rest, kept)])
    return connection.execute(
        select(CHUNK).where(CHUNK.c.batch == other.batch, CHUNK.c.number == number)
    ).one()


def ended(connection: Connection, row: Any, worker: str) -> None:
    """Count a request that ran alone to its end as a comparison for those whose workers crashed on this boot."""
    if not row.alone or row.total > 1:
        return
    boot = select(WORKER.c.boot_id).where(WORKER.c.id == worker).scalar_subquery()
    connection.execute(
        update(CHUNK)
        .where(
            OPEN,
            CHUNK.c.alone,
            CHUNK.c.worker_crashes > 0,
            CHUNK.c.model == row.model,
            CHUNK.c.crash_boot == boot,
        )
        .values(comparisons=CHUNK.c.comparisons + 1)
    )


def _one_is_open(row: Any) -> bool:
    return bool(row.total - row.completed - row.failed == 1)


def _convicts(crashes: int, comparisons: int) -> bool:
    return crashes >= (WORKER_CRASHES if comparisons else UNCOMPARED_WORKER_CRASHES)


def _evidence(crashes: int, comparisons: int) -> str:
    compared = (
        f"between these deaths other requests ran alone to their end on the same machine ({comparisons} times)"
        if comparisons
        else "there was no other request to compare it with"
    )
    return f"The worker or its engine died {crashes} times in a row while this request ran alone; {compared}."


def _give_back(connection: Connection, row: Any, **values: Any) -> None:
    connection.execute(
        update(CHUNK).where(same_chunk(row)).values(state=ChunkState.READY, worker=None, **values)
    )


def _convict(connection: Connection, row: Any, seq: int, message: str, *, attempts: int) -> None:
    """Record the request as ``engine_crash`` and clear the rest of its chunk."""
    connection.execute(
        insert(RESULT).values(
            batch=row.batch,
            seq=seq,
            epoch=row.epoch,
            error_code="engine_crash",
            error_message=message,
            prompt_tokens=0,
            completion_tokens=0,
            attempts=attempts,
        )
    )
    finished = row.completed + row.failed + 1 == row.total
    connection.execute(
        update(CHUNK)
        .where(same_chunk(row))
        .values(
            state=ChunkState.DONE if finished else ChunkState.READY,
            worker=None,
            failed=row.failed + 1,
            engine_crashes=0,
            worker_crashes=0,
            alone=False,
        )
    )


def _split(connection: Connection, row: Any, suspects: Sequence[int], crashes: int) -> None:
    """Halve what is suspected and have it run alone; the rest of the chunk is cleared.

    A single request needs no other chunk to be suspected in.
    """
    if row.total == 1:
        _give_back(connection, row, engine_crashes=crashes, worker_crashes=0, alone=True)
        return
    unfinished = _open(connection, row)
    accused = [seq for seq in unfinished if suspects[0] <= seq <= suspects[-1]]
    middle = (len(accused) + 1) // 2
    suspected = {"engine_crashes": crashes, "alone": True}
    _cut(
        connection,
        row,
        [
            ([seq for seq in unfinished if seq < suspects[0]], {}),
            (accused[:middle], suspected),
            (accused[middle:], suspected),
            ([seq for seq in unfinished if seq > suspects[-1]], {}),
        ],
    )


# What is known of a chunk by the crashes over it, and where that begins.
_HISTORY: Mapping[str, Any] = {
    "engine_crashes": 0,
    "worker_crashes": 0,
    "crash_boot": None,
    "comparisons": 0,
    "alone": False,
}


def _cut(connection: Connection, row: Any, pieces: Sequence[tuple[Sequence[int], Mapping[str, Any]]]) -> int:
    """Close the chunk over what is recorded of it; its open requests continue in chunks of their own.

    A piece is the requests (``seq``, ascending) and what is known of them. Returns the number of the first new chunk.
    """
    # Two workers may cut chunks of one batch at the same time; the new ones are numbered by one after the other.
    connection.execute(select(BATCH.c.pk).where(BATCH.c.pk == row.batch).with_for_update()).all()
    last = connection.execute(select(func.max(CHUNK.c.number)).where(CHUNK.c.batch == row.batch)).scalar_one()
    connection.execute(
        insert(CHUNK),
        [
            {
                "batch": row.batch,
                "number": last + offset,
                "model": row.model,
                "url": row.url,
                "priority": row.priority,
                "first_seq": seqs[0],
                "last_seq": seqs[-1],
                "state": ChunkState.READY,
                "epoch": row.epoch,
                "total": len(seqs),
                **_HISTORY,
                **known,
            }
            for offset, (seqs, known) in enumerate((piece for piece in pieces if piece[0]), start=1)
        ],
    )
    connection.execute(
        update(CHUNK)
        .where(same_chunk(row))
        .values(state=ChunkState.DONE, worker=None, total=row.completed + row.failed)
    )
    return int(last) + 1


def _open(connection: Connection, row: Any) -> list[int]:
    of_chunk = between(row.first_seq, row.last_seq)
    query = (
        select(REQUEST.c.seq)
        .select_from(with_results(of_chunk))
        .where(REQUEST.c.batch == row.batch, of_chunk(REQUEST), UNRECORDED)
        .order_by(REQUEST.c.seq)
    )
    return list(connection.execute(query).scalars())
