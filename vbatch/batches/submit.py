"""Accept a batch whole or refuse it with every bad line named; a crash in between leaves no trace."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

from vbatch import processes
from vbatch.batches.finalize import finalize_here
from vbatch.batches.find import REUSE_OF, reusable
from vbatch.batches.paths import Targets, check_targets, named_file, targets
from vbatch.errors import ExitCode, InputUnreadable, Interrupted, StoreUnreachable, UsageError, VbatchError
from vbatch.jsonl import Defects, LineReader, Validator
from vbatch.protocol import BatchError, with_model
from vbatch.store import Store, catalog, ingest, unaccepted
from vbatch.store.records import Batch, NewBatch

# OpenAI's limits of a batch's metadata.
METADATA_PAIRS, METADATA_KEY, METADATA_VALUE = 16, 64, 512
MOST_PRIORITY = 1_000_000
TRIES = 3  # of reading a file from its start again when the database went away in the middle


class InvalidInput(VbatchError):
    """The input file is not valid; nothing was stored."""

    code = "invalid_input"
    exit_code = ExitCode.INVALID_INPUT

    def __init__(self, defects: Defects, *, source: str) -> None:
        self.errors: tuple[BatchError, ...] = tuple(defects.shown)
        self.total = defects.total
        problems = "1 problem" if self.total == 1 else f"{self.total:,} problems"
        super().__init__(f"{source} has {problems}; nothing was stored.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What a submit did. ``batch`` is None for a dry run; ``repeats`` are earlier batches of the same bytes.

    ``reused_from`` is the batch whose answers were looked at; how many were taken is in ``batch.reused``.
    """

    batch: Batch | None
    requests: int
    targets: Targets
    repeats: tuple[Batch, ...]
    reused_from: Batch | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Order:
    """What ``submit`` is asked for."""

    model: str | None = None
    output: Path | None = None
    error_file: Path | None = None
    name: str | None = None
    priority: int = 0
    metadata: Mapping[str, str] | None = None
    expires_in: timedelta | None = None
    reuse: str | None = None


def submit(
    store: Store,
    source: Path | BinaryIO,
    order: Order,
    *,
    dry_run: bool = False,
    on_read: Callable[[int], None] = lambda _size: None,
) -> Submitted:
    """Validate the source and store it as a batch; with ``dry_run`` only validate it.

    ``on_read`` is told now and then how many bytes of the source are read.
    Raises InvalidInput, InputUnreadable, OutputPathError, UsageError, NoSuchBatch, StoreUnreachable.
    """
    _check_metadata(order.metadata or {})
    if abs(order.priority) > MOST_PRIORITY:
        raise UsageError(f"--priority takes a number between -{MOST_PRIORITY:,} and {MOST_PRIORITY:,}.")
    if order.model == "":
        raise UsageError("--model names no model")
    if isinstance(source, Path) and _is_folder(source):
        raise InputUnreadable(f"{source} is a folder.", hint=f"ls {source}/*.jsonl")
    path = named_file(source)
    batch_id = f"batch_{secrets.token_hex(12)}"
    chosen = targets(path, output=order.output, error_file=order.error_file, batch_id=batch_id)
    if not dry_run:  # first, or one that was killed would keep the paths for itself
        unaccepted.sweep(store, gone=processes.is_gone)
    check_targets(None if dry_run else store, chosen, source=path, batch_id=batch_id)
    if dry_run:
        requests = _validate_only(source, order, on_read)
        return Submitted(batch=None, requests=requests, targets=chosen, repeats=())
    earlier = reusable(store, order.reuse, path=path)
    batch = _store_batch_patiently(store, source, order, chosen, batch_id, earlier=earlier, on_read=on_read)
    with told(batch.id):
        if batch.counts.completed == batch.counts.total:
            with suppress(OSError):  # then the next worker writes the files
                batch = finalize_here(store, batch)
        repeats = catalog.same_input(store, input_sha256=batch.input_sha256)
    return Submitted(
        batch=batch,
        requests=batch.counts.total,
        targets=chosen,
        repeats=tuple(repeat for repeat in repeats if repeat.pk != batch.pk),
        reused_from=earlier[0] if earlier else None,
    )


@contextmanager
def told(batch_id: str) -> Iterator[None]:
    """Tell a batch's id whatever ends what follows its acceptance: it exists, and is not to be submitted again."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; {batch_id} is accepted and goes on", hint=f"vbatch watch {batch_id}"
        ) from None
    except StoreUnreachable as error:
        raise StoreUnreachable(
            f"{batch_id} is accepted, but cannot be followed: {error.message}",
            hint=error.hint,
            fault=error.fault,
        ) from error
    except BrokenPipeError:  # nobody listens any more
        raise
    except OSError as error:
        raise VbatchError(
            f"{batch_id} is accepted, but that cannot be written: {error.strerror}",
            hint=f"vbatch status {batch_id}",
        ) from error


def _store_batch_patiently(
    store: Store,
    source: Path | BinaryIO,
    order: Order,
    chosen: Targets,
    batch_id: str,
    *,
    earlier: Sequence[Batch],
    on_read: Callable[[int], None],
) -> Batch:
    """Read a file from its start again when the database goes away in the middle."""
    for attempt in range(1, TRIES + 1):
        try:
            return _store_batch(store, source, order, chosen, batch_id, earlier=earlier, on_read=on_read)
        except StoreUnreachable:
            if not isinstance(source, Path) or not source.is_file() or attempt == TRIES:
                raise
            store.prepare()  # waits for the database
    raise AssertionError("the last try returns or raises")


def _store_batch(
    store: Store,
    source: Path | BinaryIO,
    order: Order,
    chosen: Targets,
    batch_id: str,
    *,
    earlier: Sequence[Batch],
    on_read: Callable[[int], None],
) -> Batch:
    now = datetime.now(UTC)
    new = NewBatch(
        id=batch_id,
        endpoint="",
        name=order.name,
        priority=order.priority,
        metadata=dict(order.metadata or {}) | ({REUSE_OF: earlier[0].id} if earlier else {}),
        input_path=str(place) if (place := named_file(source)) is not None else None,
        output_path=str(chosen.output),
        error_path=str(chosen.errors),
        expires_at=now + order.expires_in if order.expires_in is not None else None,
        created_at=now,
    )
    validator = Validator(model=order.model)
    with _opened(source) as stream, ingest.ingest(store, new=new, submitter=processes.current()) as storing:
        lines = LineReader(stream, on_read=on_read)
        add, check, defects = storing.add, validator.check, validator.defects
        replace = order.model is not None
        for number, line in lines:
            checked = check(number, line)
            if checked is None or defects.total:
                continue
            request, model = checked
            body = bytes(request.body)
            add(number, request.custom_id, model, with_model(body, model) if replace else body)
        validator.finish(cut_off=lines.cut_off)
        if defects.total:
            raise InvalidInput(defects, source=_name(source))
        stream.check_unchanged()
        assert validator.endpoint is not None
        return storing.accept(
            endpoint=validator.endpoint,
            input_sha256=lines.sha256,
            input_bytes=lines.size,
            earlier=earlier,
        )


def _validate_only(source: Path | BinaryIO, order: Order, on_read: Callable[[int], None]) -> int:
    validator = Validator(model=order.model)
    requests = 0
    with _opened(source) as stream:
        lines = LineReader(stream, on_read=on_read)
        for number, line in lines:
            requests += validator.check(number, line) is not None
        stream.check_unchanged()
    validator.finish(cut_off=lines.cut_off)
    if validator.defects.total:
        raise InvalidInput(validator.defects, source=_name(source))
    return requests


def _is_folder(source: Path) -> bool:
    try:
        return stat.S_ISDIR(source.stat().st_mode)
    except OSError as error:
        raise _unreadable(source, error) from None


def _unreadable(source: Path, error: OSError) -> InputUnreadable:
    return InputUnreadable(f"{source} cannot be read: {error.strerror}.", hint=f"ls -l {source}")


class _Reading:
    """A stream whose faults are told as the input's."""

    def __init__(self, stream: BinaryIO, name: str) -> None:
        self._stream = stream
        self._name = name
        self._done = 0
        self._before = _version(stream)

    def read(self, size: int) -> bytes:
        """Return the next bytes. Raises InputUnreadable with the place."""
        try:
            block = self._stream.read(size)
        except OSError as error:
            raise InputUnreadable(
                f"{self._name} cannot be read beyond byte {self._done:,}: {error.strerror}.",
                hint="nothing was stored; journalctl -k tells of a disk's faults",
            ) from None
        self._done += len(block)
        return block

    def check_unchanged(self) -> None:
        """Raise InputUnreadable for a file that somebody wrote into meanwhile."""
        if _version(self._stream) != self._before:
            raise InputUnreadable(
                f"{self._name} was changed while it was being read; nothing was stored.",
                hint="submit it again when it is finished",
            )


@contextmanager
def _opened(source: Path | BinaryIO) -> Iterator[_Reading]:
    """Open the source. Raises InputUnreadable with the reason, also for what goes wrong while it is read."""
    if not isinstance(source, Path):
        yield _Reading(source, _name(source))
        return
    try:
        stream = source.open("rb", buffering=0)
    except OSError as error:
        raise _unreadable(source, error) from None
    with stream:
        yield _Reading(stream, _name(source))


def _version(stream: BinaryIO) -> tuple[int, int] | None:
    """Return size and time of change of a regular file; None for what has neither, as a stream in memory."""
    try:
        status = os.fstat(stream.fileno())
    except OSError:
        return None
    return (status.st_size, status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None


def _name(source: Path | BinaryIO) -> str:
    return str(source) if isinstance(source, Path) else "The input"


def _check_metadata(metadata: Mapping[str, str]) -> None:
    if len(metadata) > METADATA_PAIRS:
        raise UsageError(f"A batch takes at most {METADATA_PAIRS} metadata pairs; these are {len(metadata)}.")
    for key, value in metadata.items():
        if not 0 < len(key) <= METADATA_KEY or len(value) > METADATA_VALUE:
            raise UsageError(
                f"Metadata {key!r}: keys have 1 to {METADATA_KEY} characters, values at most {METADATA_VALUE}."
            )
