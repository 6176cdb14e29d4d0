"""What goes into the store and comes out of it: frozen values, no sessions, no rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from datetime import datetime
from enum import StrEnum
from typing import NamedTuple

from vbatch.protocol import BatchStatus
from vbatch.system.processes import ProcessIdentity

CHUNK_REQUESTS = 256  # in a full chunk
SPLIT_AT = 2  # engine deaths over the requests of a chunk: from then on it is suspected, and runs alone
MODEL_SHIFT = 40  # seq = the model's ordinal in the file << 40 | the request's number among that model's


class ChunkState(StrEnum):
    """Where a chunk is on its way."""

    READY = "ready"  # may be claimed
    RUNNING = "running"  # leased to a worker
    DONE = "done"  # every request of it has its result
    CANCELLED = "cancelled"  # its batch was cancelled or expired; what is unfinished stays so
    FAILED = "failed"  # its model cannot be loaded; what is unfinished counts as failed


class ChunkKey(NamedTuple):
    """Which chunk: the batch's primary key and the chunk's number in it."""

    batch: int
    n: int


class LeaseKey(NamedTuple):
    """Which lease: a chunk under one epoch. A worker that lost a chunk may lease the same one again."""

    chunk: ChunkKey
    epoch: int


@dataclass(frozen=True, slots=True, kw_only=True)
class RequestCounts:
    """How far a batch is. ``completed`` and ``failed`` are recorded results; the rest is not finished."""

    total: int
    completed: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True)
class NewBatch:
    """A batch as ``submit`` describes it, before its requests are known. Paths are absolute."""

    id: str
    endpoint: str
    name: str | None
    priority: int
    metadata: Mapping[str, str]
    input_path: str | None
    output_path: str
    error_path: str
    expires_at: datetime | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch as it stands in the store. Times are aware UTC; ``model`` is None when its lines name several.

    ``reused`` of its completed requests were answered by an earlier batch.
    """

    pk: int
    id: str
    status: BatchStatus
    endpoint: str
    model: str | None
    name: str | None
    priority: int
    metadata: Mapping[str, str]
    input_path: str | None
    input_sha256: str
    input_bytes: int
    output_path: str
    error_path: str
    counts: RequestCounts
    reused: int
    prompt_tokens: int
    completion_tokens: int
    created_at: datetime
    in_progress_at: datetime | None
    finalizing_at: datetime | None
    completed_at: datetime | None
    failed_at: datetime | None
    expired_at: datetime | None
    cancelling_at: datetime | None
    cancelled_at: datetime | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One input line. ``seq`` is the order of work, ``line`` (1-based) the place in the file."""

    seq: int
    line: int
    custom_id: str
    body: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A chunk that one worker runs now. ``requests`` are those of it that have no result yet.

    ``epoch`` is the fencing token: a flush that carries an older one is dropped. ``alone``: nothing else may run
    while these requests do.
    """

    key: ChunkKey
    batch_id: str
    epoch: int
    model: str
    url: str
    alone: bool
    requests: tuple[Request, ...]

    @property
    def id(self) -> LeaseKey:
        """What distinguishes it from an earlier lease of the same chunk."""
        return LeaseKey(self.key, self.epoch)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of one request.

    With an answer, ``status_code`` and ``body`` hold it (an HTTP error's body is an error object). Without one, they
    are None, and ``error_code`` and ``error_message`` say why: it was tried in vain (``engine_crash``,
    ``request_timeout``), or, after no attempt at all, never will be (``batch_cancelled``).
    """

    status_code: int | None = None
    request_id: str | None = None
    body: bytes | None = None
    error_code: str | None = None
    error_message: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1

    @property
    def succeeded(self) -> bool:
        """Whether it belongs into the output file: a 2xx answer."""
        return self.status_code is not None and 200 <= self.status_code < 300


OUTCOME = tuple(field.name for field in fields(Outcome))  # the columns of a result that hold it


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of a leased request, as a worker brings it."""

    key: ChunkKey
    epoch: int
    seq: int
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Flushed:
    """What a flush did. ``rejected`` chunks are no longer leased to this worker: abort what still runs of them."""

    recorded: int
    rejected: frozenset[ChunkKey]
    finished_chunks: frozenset[ChunkKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Ready work for one model, as the worker sees it when it chooses what to load."""

    model: str
    priority: int
    batch: int


class Troubled(NamedTuple):
    """A chunk whose requests were running each time an engine or a worker died: one of them may be the cause."""

    batch_id: str
    requests: int
    deaths: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker as it registered itself. ``beat`` is a counter: it rises only while the worker makes progress.

    ``requests_per_second`` is of the last minute before its last beat; None while it answers nothing.
    """

    id: str
    identity: ProcessIdentity
    engine: str
    gpu_uuid: str | None
    model: str | None
    note: str | None
    requests_per_second: float | None
    beat: int
    started_at: datetime
    beat_at: datetime
    stopped_at: datetime | None

    @property
    def lost(self) -> bool:
        """Whether its end was not seen, or may still come: a later reclaim records its last beat as its end."""
        return self.stopped_at is None or self.stopped_at == self.beat_at


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProcess:
    """A row of the ledger: one process that a worker's engine started."""

    worker: str
    identity: ProcessIdentity
    title: str
    cgroup: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One request and what became of it: what a line of an output or error file is made of.

    ``outcome`` is None while the request is not finished.
    """

    seq: int
    line: int
    custom_id: str
    outcome: Outcome | None
