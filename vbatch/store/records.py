"""What goes into the store and comes out of it: frozen values, no sessions, no rows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, NamedTuple

from vbatch.protocol import BatchStatus
from vbatch.system.processes import ProcessIdentity

CHUNK_REQUESTS = 256  # in a full chunk
SEVERAL = ""  # the endpoint of a batch whose lines go to several
DEDUPE = "vbatch_dedupe"  # the metadata key of a batch whose identical requests run once; no user sets it
COMMAND = "command"  # in place of an engine: a command that writes files, registered like a worker
SPLIT_AT = 2  # engine crashes over the requests of a chunk: from then on it is suspected, and runs alone
SUBMITTED_AGAIN = "submitted_again"  # the error code of a request that ``retry`` took out of a running batch


class Span(NamedTuple):
    """A chunk of a batch: its number, and the first and last ``seq`` of it."""

    number: int
    first: int
    last: int


class ChunkState(StrEnum):
    """Where a chunk is on its way."""

    READY = "ready"  # may be claimed
    RUNNING = "running"  # leased to a worker
    WAITING = (
        "waiting"  # never claimed: each request gets the outcome of an identical one (store/duplicates.py)
    )
    DONE = "done"  # every request of it has its result
    CANCELLED = "cancelled"  # its batch was cancelled or expired; what is unfinished stays so
    FAILED = "failed"  # what is unfinished counts as failed: it was submitted again; in 0.1, its model was not loaded


class LeaseKey(NamedTuple):
    """Which lease: a chunk (the batch's primary key and the chunk's number in it) under one epoch.

    The epoch is the fencing token: a worker that lost a chunk may lease the same one again, and what it brings under
    the old epoch is dropped.
    """

    batch: int
    number: int
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
    notify: str | None = None
    input_file: str | None = None
    asked: Mapping[str, Any] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch:
    """A batch as it stands in the store. Times are aware UTC; ``model`` is None when its lines name several.

    ``reused`` of its completed requests were answered by an earlier batch; ``cut_off`` answers ended at the limit of
    tokens, ``empty`` ones have no text. ``skipped`` lines of its file were not valid and left out; the engine
    ignores the ``ignored`` fields (field, lines, hint). ``begun``: a worker
    has had a part of it. Of the prompts' tokens ``cached_tokens`` were in an engine's cache. Of a program's batch,
    ``input_file`` is its uploaded file, ``asked`` what else was asked for, ``errors`` are its bad lines.
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
    output_path: str
    error_path: str
    counts: RequestCounts
    reused: int
    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    cut_off: int = 0
    empty: int = 0
    skipped: int = 0
    ignored: tuple[Mapping[str, Any], ...] = ()
    begun: bool = True
    created_at: datetime
    in_progress_at: datetime | None
    finalizing_at: datetime | None
    completed_at: datetime | None
    failed_at: datetime | None
    expired_at: datetime | None
    cancelling_at: datetime | None
    cancelled_at: datetime | None
    expires_at: datetime | None
    notify: str | None = None
    host: str | None = None
    input_file: str | None = None
    asked: Mapping[str, Any] | None = None
    errors: tuple[Mapping[str, Any], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One input line. ``seq`` is the order of work, ``line`` (1-based) the place in the file."""

    seq: int
    line: int
    custom_id: str
    body: bytes


class Unread(NamedTuple):
    """A leased request whose body, of so many bytes, has not been read."""

    seq: int
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease:
    """A chunk that one worker runs now. ``requests`` are those of it that have no result yet.

    There was no room for the bodies of the ``unread`` ones, which follow them (``vbatch.store.bodies``).
    ``alone``: nothing else may run while these requests do.
    """

    key: LeaseKey
    batch_id: str
    model: str
    url: str
    alone: bool
    requests: tuple[Request, ...]
    unread: tuple[Unread, ...] = ()


class Outcome(NamedTuple):
    """What became of one request.

    With an answer, ``status_code`` and ``body`` hold it (an HTTP error's body is an error object). Without one, they
    are None, and ``error_code`` and ``error_message`` say why: it was tried in vain (``engine_crash``,
    ``request_timeout``), or, after no attempt at all, never will be (``batch_cancelled``). ``finish`` is why the engine
    stopped writing (``CUT_OFF``: at the limit of tokens); None where the answer does not say so, and where it was
    recorded by a vbatch that did not count this. Of the prompt's tokens ``cached_tokens`` were in the engine's cache.
    """

    body: bytes | None = None
    status_code: int | None = None
    request_id: str | None = None
    error_code: str | None = None
    error_message: str | None = None
    prompt_tokens: int = 0
    completion_tokens: int = 0
    attempts: int = 1
    finish: str | None = None
    cached_tokens: int = 0

    @property
    def succeeded(self) -> bool:
        """Whether it belongs into the output file: a 2xx answer."""
        return self.status_code is not None and 200 <= self.status_code < 300


OUTCOME = Outcome._fields  # the columns of a result that hold it


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """The outcome of a leased request, as a worker brings it."""

    key: LeaseKey
    seq: int
    outcome: Outcome


@dataclass(frozen=True, slots=True, kw_only=True)
class Flushed:
    """What a flush did. ``rejected`` leases have ended: abort what still runs of them. ``finished`` chunks are done."""

    recorded: int
    rejected: frozenset[LeaseKey]
    finished: frozenset[LeaseKey]


@dataclass(frozen=True, slots=True, kw_only=True)
class Waiting:
    """Ready work for one model, as the worker sees it when it chooses what to load."""

    model: str
    priority: int
    batch: int


class Troubled(NamedTuple):
    """A chunk whose requests were running each time an engine or a worker crashed: one of them may be the cause."""

    batch_id: str
    requests: int
    crashes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Worker:
    """A worker as it registered itself. ``heartbeat`` is a counter: it rises only while the worker makes progress.

    ``gpus`` are the UUIDs of its GPUs, where the driver reports them. ``models`` are those that its engine serves now.
    ``requests_per_second`` is of the last minute before its last heartbeat; None while it answers nothing. That one was
    ``silent`` ago, by the database's clock.
    """

    id: str
    identity: ProcessIdentity
    engine: str
    gpus: tuple[str, ...]
    models: tuple[str, ...]
    note: str | None
    requests_per_second: float | None
    heartbeat: int
    started_at: datetime
    heartbeat_at: datetime
    stopped_at: datetime | None
    silent: timedelta

    @property
    def model(self) -> str | None:
        """The model that is loaded; None without an engine."""
        return self.models[0] if self.models else None

    @property
    def lost(self) -> bool:
        """Whether its end was not seen, or may still come: a later reclaim records its last heartbeat as its end."""
        return self.stopped_at is None or self.stopped_at == self.heartbeat_at


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedModel:
    """A model that the workers of one configuration on a host cannot load.

    ``url`` is the endpoint that the loaded model cannot do; empty where the model itself cannot be loaded.
    """

    configuration: str
    model: str
    url: str
    host: str
    reason: str
    hint: str | None
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineProcess:
    """A row of the ledger: one process that a worker's engine started."""

    worker: str
    identity: ProcessIdentity
    title: str


class Answer(NamedTuple):
    """One request and what became of it: what a line of an output or error file is made of.

    ``outcome`` is None while the request is not finished.
    """

    seq: int
    line: int
    custom_id: str
    outcome: Outcome | None
