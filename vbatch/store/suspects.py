"""Find the poisonous request: who was in the engine at each of its deaths, narrowed down by halving.

A chunk whose requests were in the engine at one death is given back as it is: deaths have many causes. At the
second death it is split: what was not in the engine is innocent, what was is halved, and each half is leased alone
from then on (``queue.claim``). A death while a single request of such a suspect runs alone convicts it. So one
poisonous request of a full chunk costs at most log2(chunk) + 2 engine deaths.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, and_, func, insert, select, update

from vbatch.store.records import SPLIT_AT, ChunkState
from vbatch.store.tables import BATCH, CHUNK, REQUEST, RESULT
from vbatch.store.tables import same_chunk as _is

_batch = BATCH
_chunk = CHUNK
_request = REQUEST
_result = RESULT

LOSSES = 3  # workers that vanished in a row over a chunk, without any result of it in between


def is_suspect(row: Any) -> bool:
    """Whether this chunk is to run alone: its requests were in the engine at two deaths."""
    return bool(row.crashes >= SPLIT_AT)


def crashed(connection: Connection, row: Any, suspects: Sequence[int], cause: str, *, alone: bool) -> None:
    """Deal with an engine death over these requests (``seq``, ascending) of a running chunk.

    ``alone`` says that the engine had one request only, of whatever chunk.
    """
    crashes = row.crashes + 1
    if crashes < SPLIT_AT:
        _give_back(connection, row, crashes=crashes)
    elif alone and is_suspect(row):
        message = (
            f"The engine died while this request ran alone, after {row.crashes} deaths with its chunk in the engine; "
            f"the last time: {cause}"
        )
        _convict(connection, row, suspects[0], message)
    else:
        _split(connection, row, suspects, crashes)


def lost(connection: Connection, row: Any, *, vanished: bool, alone: bool) -> None:
    """Deal with a worker that is gone while it held this chunk, and (``alone``) no other."""
    losses = row.losses + 1 if vanished else 0
    if losses < LOSSES:
        _give_back(connection, row, losses=losses)
        return
    suspects = _open(connection, row)
    if alone and len(suspects) == 1 and is_suspect(row):
        _convict(connection, row, suspects[0], f"The worker died {losses} times in a row over this request.")
    elif suspects:
        _split(connection, row, suspects, SPLIT_AT)


def _give_back(connection: Connection, row: Any, **values: int) -> None:
    connection.execute(update(_chunk).where(_is(row)).values(state=ChunkState.READY, worker=None, **values))


def _convict(connection: Connection, row: Any, seq: int, message: str) -> None:
    """Record the request as ``engine_crash`` and clear the rest of its chunk."""
    connection.execute(
        insert(_result).values(
            batch=row.batch,
            seq=seq,
            epoch=row.epoch,
            error_code="engine_crash",
            error_message=message,
            prompt_tokens=0,
            completion_tokens=0,
            attempts=row.crashes + 1,
        )
    )
    finished = row.completed + row.failed + 1 == row.total
    connection.execute(
        update(_chunk)
        .where(_is(row))
        .values(
            state=ChunkState.DONE if finished else ChunkState.READY,
            worker=None,
            failed=row.failed + 1,
            crashes=0,
            losses=0,
        )
    )


def _split(connection: Connection, row: Any, suspects: Sequence[int], crashes: int) -> None:
    """Close the chunk over what is recorded of it; its open requests go on in chunks of their own.

    A single request needs no other chunk to be suspected in.
    """
    if row.total == 1:
        _give_back(connection, row, crashes=crashes, losses=0)
        return
    unfinished = _open(connection, row)
    accused = [seq for seq in unfinished if suspects[0] <= seq <= suspects[-1]]
    middle = (len(accused) + 1) // 2
    pieces = (
        ([seq for seq in unfinished if seq < suspects[0]], 0),
        (accused[:middle], crashes),
        (accused[middle:], crashes),
        ([seq for seq in unfinished if seq > suspects[-1]], 0),
    )
    # Two workers may split chunks of one batch at the same time; the new ones are numbered by one after the other.
    connection.execute(select(_batch.c.pk).where(_batch.c.pk == row.batch).with_for_update()).all()
    last = connection.execute(select(func.max(_chunk.c.n)).where(_chunk.c.batch == row.batch)).scalar_one()
    connection.execute(
        insert(_chunk),
        [
            {
                "batch": row.batch,
                "n": last + offset,
                "model": row.model,
                "url": row.url,
                "priority": row.priority,
                "first_seq": seqs[0],
                "last_seq": seqs[-1],
                "state": ChunkState.READY,
                "epoch": row.epoch,
                "crashes": piece_crashes,
                "total": len(seqs),
            }
            for offset, (seqs, piece_crashes) in enumerate((piece for piece in pieces if piece[0]), start=1)
        ],
    )
    connection.execute(
        update(_chunk)
        .where(_is(row))
        .values(state=ChunkState.DONE, worker=None, total=row.completed + row.failed)
    )


def _open(connection: Connection, row: Any) -> list[int]:
    joined = _request.outerjoin(
        _result, and_(_result.c.batch == _request.c.batch, _result.c.seq == _request.c.seq)
    )
    query = (
        select(_request.c.seq)
        .select_from(joined)
        .where(
            _request.c.batch == row.batch,
            _request.c.seq.between(row.first_seq, row.last_seq),
            _result.c.seq.is_(None),
        )
        .order_by(_request.c.seq)
    )
    return list(connection.execute(query).scalars())
