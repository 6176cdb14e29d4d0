"""The vocabulary of the store: the tables, every column with its explicit type, and the conditions on them.

Only partial indexes besides the primary keys, and none on a column that changes often: a claim costs the same
after ten million results as after none (measured: tests/benchmarks/bench_store.py). No foreign keys: PostgreSQL
would check each of a million inserted rows by itself, and rows of a batch come and go only together.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    LargeBinary,
    Text,
    and_,
    exists,
    false,
    literal_column,
    or_,
)
from sqlmodel import Field, SQLModel

from vbatch.protocol import CUT_OFF, BatchStatus
from vbatch.store.database.backends import BACKENDS
from vbatch.store.database.columns import AnyText, UtcDateTime
from vbatch.store.records import ChunkState

# SQLite makes only an INTEGER PRIMARY KEY the row's own id.
_Id = BigInteger().with_variant(Integer(), "sqlite")


def _text(**options: Any) -> Any:
    return Column(Text(), nullable=options.pop("nullable", False), **options)


def _words() -> Any:
    return Column(AnyText(), nullable=True)


def _integer(**options: Any) -> Any:
    return Column(Integer(), nullable=False, **options)


def _big(**options: Any) -> Any:
    return Column(BigInteger(), nullable=False, **options)


def _time(*, nullable: bool = True) -> Any:
    return Column(UtcDateTime(), nullable=nullable)


class BatchRow(SQLModel, table=True):
    """A batch: what ``submit`` was given, and one time for each status it had.

    ``host`` is the one that writes its files (None of a batch from before that was recorded). ``notify`` is whom to
    notify of its end. ``input_file`` is the id of the uploaded file that it was made of.
    """

    __tablename__ = "batch"
    __table_args__ = (
        Index("ix_batch_input", "input_sha256"),
        {"sqlite_autoincrement": True},  # a deleted batch's pk is never given to another one
    )

    pk: int | None = Field(default=None, sa_column=Column(_Id, primary_key=True, autoincrement=True))
    id: str = Field(sa_column=_text(unique=True))
    status: str = Field(sa_column=_text())
    endpoint: str = Field(sa_column=_text())
    model: str | None = Field(default=None, sa_column=_text(nullable=True))
    name: str | None = Field(default=None, sa_column=_text(nullable=True))
    priority: int = Field(sa_column=_integer())
    metadata_: dict[str, str] = Field(sa_column=Column("metadata", JSON(), nullable=False))
    input_path: str | None = Field(default=None, sa_column=_text(nullable=True))
    input_sha256: str = Field(sa_column=_text())
    output_path: str = Field(sa_column=_text())
    error_path: str = Field(sa_column=_text())
    total: int = Field(sa_column=_big())
    reused: int = Field(sa_column=_big(server_default="0"))
    submitter: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(), nullable=True))
    finalizer: str | None = Field(default=None, sa_column=_text(nullable=True))
    created_at: datetime = Field(sa_column=_time(nullable=False))
    in_progress_at: datetime | None = Field(default=None, sa_column=_time())
    finalizing_at: datetime | None = Field(default=None, sa_column=_time())
    completed_at: datetime | None = Field(default=None, sa_column=_time())
    failed_at: datetime | None = Field(default=None, sa_column=_time())
    expired_at: datetime | None = Field(default=None, sa_column=_time())
    cancelling_at: datetime | None = Field(default=None, sa_column=_time())
    cancelled_at: datetime | None = Field(default=None, sa_column=_time())
    expires_at: datetime | None = Field(default=None, sa_column=_time())
    host: str | None = Field(default=None, sa_column=_text(nullable=True))
    notify: str | None = Field(default=None, sa_column=_text(nullable=True))
    input_file: str | None = Field(default=None, sa_column=_text(nullable=True))


class RequestRow(SQLModel, table=True):
    """One input line. Never changed."""

    __tablename__ = "request"

    batch: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    seq: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    line: int = Field(sa_column=_big())
    custom_id: str = Field(sa_column=_text())
    body: bytes = Field(sa_column=Column(LargeBinary(), nullable=False))


class ChunkRow(SQLModel, table=True):
    """A run of requests that is leased together: the only rows that change while a batch is worked on."""

    __tablename__ = "chunk"

    batch: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    number: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    model: str = Field(sa_column=_text())
    url: str = Field(sa_column=_text())
    priority: int = Field(sa_column=_integer())
    first_seq: int = Field(sa_column=_big())
    last_seq: int = Field(sa_column=_big())
    state: str = Field(sa_column=_text())
    epoch: int = Field(sa_column=_integer(server_default="0"))
    engine_crashes: int = Field(sa_column=_integer(server_default="0"))
    worker_crashes: int = Field(sa_column=_integer(server_default="0"))
    worker: str | None = Field(default=None, sa_column=_text(nullable=True))
    total: int = Field(sa_column=_integer())
    completed: int = Field(sa_column=_integer(server_default="0"))
    failed: int = Field(sa_column=_integer(server_default="0"))
    prompt_tokens: int = Field(sa_column=_big(server_default="0"))
    completion_tokens: int = Field(sa_column=_big(server_default="0"))
    error_code: str | None = Field(default=None, sa_column=_text(nullable=True))
    error_message: str | None = Field(default=None, sa_column=_words())
    alone: bool = Field(sa_column=Column(Boolean(), nullable=False, server_default=false()))
    crash_boot: str | None = Field(default=None, sa_column=_text(nullable=True))
    comparisons: int = Field(sa_column=_integer(server_default="0"))
    cut_off: int = Field(sa_column=_integer(server_default="0"))
    cached_tokens: int = Field(sa_column=_big(server_default="0"))


class ResultRow(SQLModel, table=True):
    """What became of a request. Only ever inserted."""

    __tablename__ = "result"

    batch: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    seq: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    epoch: int = Field(sa_column=_integer())
    status_code: int | None = Field(default=None, sa_column=Column(Integer(), nullable=True))
    request_id: str | None = Field(default=None, sa_column=_text(nullable=True))
    body: bytes | None = Field(default=None, sa_column=Column(LargeBinary(), nullable=True))
    error_code: str | None = Field(default=None, sa_column=_text(nullable=True))
    error_message: str | None = Field(default=None, sa_column=_words())
    prompt_tokens: int = Field(sa_column=_integer())
    completion_tokens: int = Field(sa_column=_integer())
    attempts: int = Field(sa_column=_integer())
    finish: str | None = Field(default=None, sa_column=_text(nullable=True))
    cached_tokens: int = Field(sa_column=_integer(server_default="0"))


class WorkerRow(SQLModel, table=True):
    """A worker that works, or died without saying so."""

    __tablename__ = "worker"

    id: str = Field(sa_column=Column(Text(), primary_key=True))
    host: str = Field(sa_column=_text())
    boot_id: str = Field(sa_column=_text())
    pid_namespace: int = Field(sa_column=_big())
    pid: int = Field(sa_column=_integer())
    start_ticks: int = Field(sa_column=_big())
    engine: str = Field(sa_column=_text())
    note: str | None = Field(default=None, sa_column=_words())
    heartbeat: int = Field(sa_column=_big())
    started_at: datetime = Field(sa_column=_time(nullable=False))
    heartbeat_at: datetime = Field(sa_column=_time(nullable=False))
    stopped_at: datetime | None = Field(default=None, sa_column=_time())
    requests_per_second: float | None = Field(default=None, sa_column=Column(Float(), nullable=True))
    stopping_at: datetime | None = Field(default=None, sa_column=_time())
    gpus: list[str] | None = Field(default=None, sa_column=Column(JSON(), nullable=True))
    models: list[str] | None = Field(default=None, sa_column=Column(JSON(), nullable=True))


class ProcessRow(SQLModel, table=True):
    """The ledger: an engine process that a worker started. Only what stands here may ever be ended by vbatch."""

    __tablename__ = "process"

    boot_id: str = Field(sa_column=Column(Text(), primary_key=True))
    pid: int = Field(sa_column=Column(Integer(), primary_key=True, autoincrement=False))
    start_ticks: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    pid_namespace: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    host: str = Field(sa_column=_text())
    worker: str = Field(sa_column=Column(Text(), nullable=False, index=True))
    title: str = Field(sa_column=Column(AnyText(), nullable=False))


class BlockedRow(SQLModel, table=True):
    """A model that workers of one configuration cannot load, until a person gives what is missing."""

    __tablename__ = "blocked"

    configuration: str = Field(sa_column=Column(Text(), primary_key=True))
    model: str = Field(sa_column=Column(Text(), primary_key=True))
    host: str = Field(sa_column=_text())
    reason: str = Field(sa_column=Column(AnyText(), nullable=False))
    hint: str | None = Field(default=None, sa_column=_words())
    since: datetime = Field(sa_column=_time(nullable=False))


class FileRow(SQLModel, table=True):
    """An uploaded or made file. Its content is on disk under its id, ``file-…``."""

    __tablename__ = "file"

    id: str = Field(sa_column=Column(Text(), primary_key=True))
    filename: str = Field(sa_column=_text())
    purpose: str = Field(sa_column=_text())
    bytes: int = Field(sa_column=_big())
    sha256: str = Field(sa_column=_text())
    created_at: datetime = Field(sa_column=_time(nullable=False))
    expires_at: datetime | None = Field(default=None, sa_column=_time())
    state: str = Field(sa_column=_text())


_tables = SQLModel.metadata.tables
BATCH, REQUEST, CHUNK = _tables["batch"], _tables["request"], _tables["chunk"]
RESULT, WORKER, PROCESS = _tables["result"], _tables["worker"], _tables["process"]


def _one_of(column: Any, *values: str) -> Any:
    """Compare with values that stand in the statement itself.

    With bound parameters in their place neither database can prove that a partial index serves.
    """
    literals: list[Any] = [literal_column(f"'{value}'") for value in values]
    return column == literals[0] if len(literals) == 1 else column.in_(literals)


# Batches. One that is not visible yet is still being stored, or being deleted.
VISIBLE = BATCH.c.status != BatchStatus.VALIDATING
NOT_FINAL = _one_of(BATCH.c.status, *(status for status in BatchStatus if not status.final))
UNFINISHED = and_(NOT_FINAL, VISIBLE)

# Chunks, and the batches of which one is open.
READY = _one_of(CHUNK.c.state, ChunkState.READY)
RUNNING = _one_of(CHUNK.c.state, ChunkState.RUNNING)
OPEN = _one_of(CHUNK.c.state, ChunkState.READY, ChunkState.RUNNING)
HAS_OPEN_CHUNK = exists().where(CHUNK.c.batch == BATCH.c.pk, OPEN)

# Results, and the requests that have one or do not.
SUCCEEDED = RESULT.c.status_code.between(200, 299)
FAILED = or_(
    RESULT.c.status_code.is_(None), ~SUCCEEDED
)  # in REQUEST_WITH_RESULT also a request without a result
RESULT_OF_REQUEST = and_(RESULT.c.batch == REQUEST.c.batch, RESULT.c.seq == REQUEST.c.seq)
REQUEST_WITH_RESULT = REQUEST.outerjoin(RESULT, RESULT_OF_REQUEST)
UNRECORDED = RESULT.c.seq.is_(None)
WAS_CUT_OFF = RESULT.c.finish == CUT_OFF

# Workers that did not stop cleanly: they work, or they died.
LIVE = WORKER.c.stopped_at.is_(None)


def same_chunk(row: Any) -> Any:
    """Return the condition for the chunk of this row or lease."""
    return and_(CHUNK.c.batch == row.batch, CHUNK.c.number == row.number)


def _partial(name: str, *columns: Any, where: Any) -> None:
    Index(name, *columns, **{f"{backend.dialect}_where": where for backend in BACKENDS})


_partial("ix_batch_unfinished", BATCH.c.pk, where=NOT_FINAL)
_partial("ix_chunk_ready", CHUNK.c.model, CHUNK.c.priority.desc(), CHUNK.c.batch, CHUNK.c.number, where=READY)
_partial("ix_chunk_running", CHUNK.c.worker, where=RUNNING)
_partial("ix_chunk_open", CHUNK.c.batch, where=OPEN)
_partial("ix_worker_live", WORKER.c.id, where=LIVE)
