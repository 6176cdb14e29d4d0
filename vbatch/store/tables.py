"""The vocabulary of the store: the tables of schema.py, and the conditions on them, each spelled once."""

from __future__ import annotations

from typing import Any

from sqlalchemy import and_, exists, literal_column, or_

from vbatch.answers import CUT_OFF, EMPTY
from vbatch.protocol import BatchStatus
from vbatch.store import table_objects
from vbatch.store.records import COMMAND, ChunkState

BATCH, REQUEST, CHUNK, RESULT = (
    table_objects.BATCH,
    table_objects.REQUEST,
    table_objects.CHUNK,
    table_objects.RESULT,
)
WORKER, PROCESS = table_objects.WORKER, table_objects.PROCESS
BLOCKED, EVENT, FILE = table_objects.BLOCKED, table_objects.EVENT, table_objects.FILE


def _one_of(column: Any, *values: str) -> Any:
    """Compare with values that stand in the statement itself.

    With bound parameters in their place neither database can prove that a partial index serves.
    """
    literals: list[Any] = [literal_column(f"'{value}'") for value in values]
    return column == literals[0] if len(literals) == 1 else column.in_(literals)


# Batches. One that is not accepted yet is still being stored, or being deleted; programs see theirs all the same.
ACCEPTED = BATCH.c.status != BatchStatus.VALIDATING
VISIBLE = or_(ACCEPTED, BATCH.c.asked.is_not(None))
SERVED = BATCH.c.input_file.is_not(None)  # the server writes its files
NOT_FINAL = _one_of(BATCH.c.status, *(status for status in BatchStatus if not status.final))
UNFINISHED = and_(NOT_FINAL, ACCEPTED)

# Chunks, and the batches of which one is open.
READY = _one_of(CHUNK.c.state, ChunkState.READY)
READY_ALIKE = and_(READY, CHUNK.c.alike.is_not(None))
RUNNING = _one_of(CHUNK.c.state, ChunkState.RUNNING)
WAITING = _one_of(CHUNK.c.state, ChunkState.WAITING)  # not open: nothing of it runs
OPEN = _one_of(CHUNK.c.state, ChunkState.READY, ChunkState.RUNNING)
HAS_OPEN_CHUNK = exists().where(CHUNK.c.batch == BATCH.c.pk, OPEN)

# Results, and the requests that have one or do not; of these FAILED are, in REQUEST_WITH_RESULT, the latter too.
SUCCEEDED = RESULT.c.status_code.between(200, 299)
FAILED = or_(RESULT.c.status_code.is_(None), ~SUCCEEDED)
RESULT_OF_REQUEST = and_(RESULT.c.batch == REQUEST.c.batch, RESULT.c.seq == REQUEST.c.seq)
REQUEST_WITH_RESULT = REQUEST.outerjoin(RESULT, RESULT_OF_REQUEST)
UNRECORDED = RESULT.c.seq.is_(None)
WAS_CUT_OFF = RESULT.c.finish == CUT_OFF
IS_EMPTY = RESULT.c.finish == EMPTY

# Workers that did not stop cleanly: they work, or they died.
LIVE = WORKER.c.stopped_at.is_(None)
IS_COMMAND = WORKER.c.engine == COMMAND  # it only writes files

# Notifications that are still to be delivered.
PENDING = EVENT.c.delivered_at.is_(None)


def same_chunk(row: Any) -> Any:
    """Return the condition for the chunk of this row or lease."""
    return and_(CHUNK.c.batch == row.batch, CHUNK.c.number == row.number)
