"""The schema of the store: every table with its columns and their types, as SQLModel classes.

Only partial indexes besides the primary keys, and none on a column that changes often: a claim costs the
same after ten million results as after none (measured: tests/benchmarks/bench_store.py). No foreign keys: PostgreSQL
would check each of a million inserted rows by itself, and rows of a batch come and go only together.

Importing and mapping these classes takes a third of a second, which no ``list`` shall pay: the statements use the
Table objects of ``table_objects``, which ``python -m tests.rigs.tables`` writes from here.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import JSON, BigInteger, Boolean, Column, Float, Index, Integer, LargeBinary, Text, false
from sqlmodel import Field, SQLModel

from vbatch.store.database import columns
from vbatch.store.database.backends import BACKENDS
from vbatch.store.database.columns import AnyText
from vbatch.store.tables import LIVE, NOT_FINAL, OPEN, PENDING, READY, READY_ALIKE, RUNNING


class BatchRow(SQLModel, table=True):
    """A batch: what ``submit`` was given, and one time for each status it had.

    ``host`` is the one that writes its files (None of a batch from before that was recorded). ``notify`` is whom to
    notify of its end. ``input_file`` is the id of the uploaded file that it was made of: the server writes its files.
    ``asked`` is what else the program asked for, ``errors`` are its bad lines. ``ignored`` are the fields of its lines
    that the engine ignores; ``skipped`` counts lines that were left out because they were not valid.
    """

    __tablename__ = "batch"
    __table_args__ = (
        Index("ix_batch_input", "input_sha256"),
        {"sqlite_autoincrement": True},  # a deleted batch's pk is never given to another one
    )

    pk: int | None = Field(default=None, sa_column=Column(columns.Id, primary_key=True, autoincrement=True))
    id: str = Field(sa_column=columns.text(unique=True))
    status: str = Field(sa_column=columns.text())
    endpoint: str = Field(sa_column=columns.text())
    model: str | None = Field(default=None, sa_column=columns.text(nullable=True))
    name: str | None = Field(default=None, sa_column=columns.text(nullable=True))
    priority: int = Field(sa_column=columns.integer())
    metadata_: dict[str, str] = Field(sa_column=Column("metadata", JSON(), nullable=False))
    input_path: str | None = Field(default=None, sa_column=columns.text(nullable=True))
    input_sha256: str = Field(sa_column=columns.text())
    output_path: str = Field(sa_column=columns.text())
    error_path: str = Field(sa_column=columns.text())
    total: int = Field(sa_column=columns.big())
    reused: int = Field(sa_column=columns.big(server_default="0"))
    submitter: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(), nullable=True))
    finalizer: str | None = Field(default=None, sa_column=columns.text(nullable=True))
    created_at: datetime = Field(sa_column=columns.time(nullable=False))
    in_progress_at: datetime | None = Field(default=None, sa_column=columns.time())
    finalizing_at: datetime | None = Field(default=None, sa_column=columns.time())
    completed_at: datetime | None = Field(default=None, sa_column=columns.time())
    failed_at: datetime | None = Field(default=None, sa_column=columns.time())
    expired_at: datetime | None = Field(default=None, sa_column=columns.time())
    cancelling_at: datetime | None = Field(default=None, sa_column=columns.time())
    cancelled_at: datetime | None = Field(default=None, sa_column=columns.time())
    expires_at: datetime | None = Field(default=None, sa_column=columns.time())
    host: str | None = Field(default=None, sa_column=columns.text(nullable=True))
    notify: str | None = Field(default=None, sa_column=columns.text(nullable=True))
    input_file: str | None = Field(default=None, sa_column=columns.text(nullable=True))
    ignored: list[dict[str, Any]] | None = Field(default=None, sa_column=Column(JSON(), nullable=True))
    skipped: int = Field(default=0, sa_column=columns.big(server_default="0"))
    asked: dict[str, Any] | None = Field(default=None, sa_column=Column(JSON(), nullable=True))
    errors: list[dict[str, Any]] | None = Field(default=None, sa_column=Column(JSON(), nullable=True))


class RequestRow(SQLModel, table=True):
    """One input line. Never changed."""

    __tablename__ = "request"

    batch: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    seq: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    line: int = Field(sa_column=columns.big())
    custom_id: str = Field(sa_column=columns.text())
    body: bytes = Field(sa_column=Column(LargeBinary(), nullable=False))


class ChunkRow(SQLModel, table=True):
    """A run of requests that is leased together: the only rows that change while a batch is worked on.

    ``alike`` is the same for chunks of one batch, model and endpoint whose requests all begin alike; None where they do
    not, and where that is not known.
    """

    __tablename__ = "chunk"

    batch: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    number: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    model: str = Field(sa_column=columns.text())
    url: str = Field(sa_column=columns.text())
    priority: int = Field(sa_column=columns.integer())
    first_seq: int = Field(sa_column=columns.big())
    last_seq: int = Field(sa_column=columns.big())
    state: str = Field(sa_column=columns.text())
    epoch: int = Field(sa_column=columns.integer(server_default="0"))
    engine_crashes: int = Field(sa_column=columns.integer(server_default="0"))
    worker_crashes: int = Field(sa_column=columns.integer(server_default="0"))
    worker: str | None = Field(default=None, sa_column=columns.text(nullable=True))
    total: int = Field(sa_column=columns.integer())
    completed: int = Field(sa_column=columns.integer(server_default="0"))
    failed: int = Field(sa_column=columns.integer(server_default="0"))
    prompt_tokens: int = Field(sa_column=columns.big(server_default="0"))
    completion_tokens: int = Field(sa_column=columns.big(server_default="0"))
    error_code: str | None = Field(default=None, sa_column=columns.text(nullable=True))
    error_message: str | None = Field(default=None, sa_column=columns.words())
    alone: bool = Field(sa_column=Column(Boolean(), nullable=False, server_default=false()))
    crash_boot: str | None = Field(default=None, sa_column=columns.text(nullable=True))
    comparisons: int = Field(sa_column=columns.integer(server_default="0"))
    cut_off: int = Field(sa_column=columns.integer(server_default="0"))
    cached_tokens: int = Field(sa_column=columns.big(server_default="0"))
    empty: int = Field(sa_column=columns.integer(server_default="0"))
    alike: int | None = Field(default=None, sa_column=Column(BigInteger(), nullable=True))


class ResultRow(SQLModel, table=True):
    """What became of a request. Only ever inserted."""

    __tablename__ = "result"

    batch: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    seq: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    epoch: int = Field(sa_column=columns.integer())
    status_code: int | None = Field(default=None, sa_column=Column(Integer(), nullable=True))
    request_id: str | None = Field(default=None, sa_column=columns.text(nullable=True))
    body: bytes | None = Field(default=None, sa_column=Column(LargeBinary(), nullable=True))
    error_code: str | None = Field(default=None, sa_column=columns.text(nullable=True))
    error_message: str | None = Field(default=None, sa_column=columns.words())
    prompt_tokens: int = Field(sa_column=columns.integer())
    completion_tokens: int = Field(sa_column=columns.integer())
    attempts: int = Field(sa_column=columns.integer())
    finish: str | None = Field(default=None, sa_column=columns.text(nullable=True))
    cached_tokens: int = Field(sa_column=columns.integer(server_default="0"))


class WorkerRow(SQLModel, table=True):
    """A worker that works, or died without saying so."""

    __tablename__ = "worker"

    id: str = Field(sa_column=Column(Text(), primary_key=True))
    host: str = Field(sa_column=columns.text())
    boot_id: str = Field(sa_column=columns.text())
    pid_namespace: int = Field(sa_column=columns.big())
    pid: int = Field(sa_column=columns.integer())
    start_ticks: int = Field(sa_column=columns.big())
    engine: str = Field(sa_column=columns.text())
    note: str | None = Field(default=None, sa_column=columns.words())
    heartbeat: int = Field(sa_column=columns.big())
    started_at: datetime = Field(sa_column=columns.time(nullable=False))
    heartbeat_at: datetime = Field(sa_column=columns.time(nullable=False))
    stopped_at: datetime | None = Field(default=None, sa_column=columns.time())
    requests_per_second: float | None = Field(default=None, sa_column=Column(Float(), nullable=True))
    stopping_at: datetime | None = Field(default=None, sa_column=columns.time())
    gpus: list[str] | None = Field(default=None, sa_column=Column(JSON(), nullable=True))
    models: list[str] | None = Field(default=None, sa_column=Column(JSON(), nullable=True))


class ProcessRow(SQLModel, table=True):
    """The ledger: an engine process that a worker started. Only what stands here may ever be ended by vbatch."""

    __tablename__ = "process"

    boot_id: str = Field(sa_column=Column(Text(), primary_key=True))
    pid: int = Field(sa_column=Column(Integer(), primary_key=True, autoincrement=False))
    start_ticks: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    pid_namespace: int = Field(sa_column=Column(BigInteger(), primary_key=True, autoincrement=False))
    host: str = Field(sa_column=columns.text())
    worker: str = Field(sa_column=Column(Text(), nullable=False, index=True))
    title: str = Field(sa_column=Column(AnyText(), nullable=False))


class BlockedRow(SQLModel, table=True):
    """A model that workers of one configuration cannot load, until a person gives what is missing.

    ``url`` is the endpoint that the loaded model cannot do; empty where the model itself cannot be loaded.
    """

    __tablename__ = "blocked"

    configuration: str = Field(sa_column=Column(Text(), primary_key=True))
    model: str = Field(sa_column=Column(Text(), primary_key=True))
    url: str = Field(sa_column=Column(Text(), primary_key=True))
    host: str = Field(sa_column=columns.text())
    reason: str = Field(sa_column=Column(AnyText(), nullable=False))
    hint: str | None = Field(default=None, sa_column=columns.words())
    since: datetime = Field(sa_column=columns.time(nullable=False))


class FileRow(SQLModel, table=True):
    """An uploaded or made file. Its content is on the disk of ``host`` under its id, ``file-…``."""

    __tablename__ = "file"

    id: str = Field(sa_column=Column(Text(), primary_key=True))
    filename: str = Field(sa_column=columns.text())
    purpose: str = Field(sa_column=columns.text())
    bytes: int = Field(sa_column=columns.big())
    sha256: str = Field(sa_column=columns.text())
    created_at: datetime = Field(sa_column=columns.time(nullable=False))
    expires_at: datetime | None = Field(default=None, sa_column=columns.time())
    state: str = Field(sa_column=columns.text())
    host: str | None = Field(default=None, sa_column=columns.text(nullable=True))


class EventRow(SQLModel, table=True):
    """A notification of the end, or the blocking, of a batch: written with it, delivered later, at least once.

    ``target`` is a URL, or the name of a command in the configuration.
    """

    __tablename__ = "event"

    id: str = Field(sa_column=Column(Text(), primary_key=True))
    batch: int = Field(sa_column=columns.big())
    type: str = Field(sa_column=columns.text())
    target: str = Field(sa_column=columns.text())
    created_at: datetime = Field(sa_column=columns.time(nullable=False))
    attempts: int = Field(sa_column=columns.integer(server_default="0"))
    next_at: datetime = Field(sa_column=columns.time(nullable=False))
    delivered_at: datetime | None = Field(default=None, sa_column=columns.time())
    problem: str | None = Field(default=None, sa_column=columns.words())


METADATA = SQLModel.metadata
_batch, _chunk, _worker, _event = (METADATA.tables[name].c for name in ("batch", "chunk", "worker", "event"))


def _partial(name: str, *columns: Any, where: Any) -> None:
    Index(name, *columns, **{f"{backend.dialect}_where": where for backend in BACKENDS})


_partial("ix_batch_unfinished", _batch.pk, where=NOT_FINAL)
_partial("ix_chunk_ready", _chunk.model, _chunk.priority.desc(), _chunk.batch, _chunk.number, where=READY)
_partial("ix_chunk_alike", _chunk.batch, _chunk.alike, _chunk.number, where=READY_ALIKE)
_partial("ix_chunk_running", _chunk.worker, where=RUNNING)
_partial("ix_chunk_open", _chunk.batch, where=OPEN)
_partial("ix_worker_live", _worker.id, where=LIVE)
_partial("ix_event_pending", _event.next_at, where=PENDING)
