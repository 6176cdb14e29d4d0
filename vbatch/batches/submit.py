"""Accept a batch whole or refuse it with every bad line named; a crash in between leaves no trace."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from vbatch.batches.finalize import finalize_here
from vbatch.batches.find import REUSE_OF, reusable
from vbatch.batches.input_file import InputFile
from vbatch.batches.paths import OutputPaths, check_paths, choose_paths, refuse_in_use
from vbatch.errors import ExitCode, Interrupted, StoreUnreachable, UsageError, VbatchError
from vbatch.jsonl import Defects, LineReader, Validator
from vbatch.protocol import BatchError, with_model
from vbatch.store import Store, catalog, ingest, staging
from vbatch.store.records import Batch, NewBatch
from vbatch.system import processes
from vbatch.text import count

# OpenAI's limits of a batch's metadata.
METADATA_PAIRS, METADATA_KEY, METADATA_VALUE = 16, 64, 512
MOST_PRIORITY = 1_000_000
TRIES = 3  # of reading a file from its start again when the database went away in the middle

OnRead = Callable[[int], None]  # called now and then with how many bytes of the input were read


class InvalidInput(VbatchError):
    """The input file is not valid; nothing was stored."""

    code = "invalid_input"
    exit_code = ExitCode.INVALID_INPUT

    def __init__(self, defects: Defects, *, source: str) -> None:
        self.errors: tuple[BatchError, ...] = tuple(defects.shown)
        self.total = defects.total
        super().__init__(f"{source} has {count(self.total, 'problem')}; nothing was stored")


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """What ``submit`` is asked for."""

    model: str | None = None
    output: Path | None = None
    error_file: Path | None = None
    name: str | None = None
    priority: int = 0
    metadata: Mapping[str, str] | None = None
    expires_in: timedelta | None = None
    reuse: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What ``submit`` did. ``repeats`` are the earlier batches of the same bytes.

    ``reused_from`` is the batch whose answers were looked at; how many were taken is in ``batch.reused``.
    """

    batch: Batch
    repeats: Sequence[Batch]
    reused_from: Batch | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """An input that ``submit`` would accept, and where its files would go."""

    requests: int
    paths: OutputPaths


@dataclass(frozen=True, slots=True, kw_only=True)
class _Content:
    """What was read: the number of valid requests, their endpoint, the digest and size of the bytes."""

    requests: int
    endpoint: str
    sha256: str
    size: int


def submit(
    store: Store, source: InputFile, options: SubmitOptions, *, on_read: OnRead = lambda _size: None
) -> Submitted:
    """Validate the input and store it as a batch.

    Raises InvalidInput, InputUnreadable, OutputPathError, UsageError, NoSuchBatch, StoreUnreachable.
    """
    _check_options(options)
    batch_id = f"batch_{secrets.token_hex(12)}"
    paths = _paths(source, options, batch_id)
    staging.sweep(store, gone=processes.is_gone)  # first, or one that was killed would keep its paths
    refuse_in_use(store, paths.output, paths.errors)
    earlier = reusable(store, options.reuse, source)
    batch = _store_patiently(store, source, options, paths, batch_id, earlier=earlier, on_read=on_read)
    with name_batch_in_errors(batch.id):
        if batch.counts.completed == batch.counts.total:
            with suppress(OSError):  # then the next worker writes the files
                batch = finalize_here(store, batch)
        repeats = catalog.same_input(store, input_sha256=batch.input_sha256)
    return Submitted(
        batch=batch,
        repeats=tuple(repeat for repeat in repeats if repeat.pk != batch.pk),
        reused_from=earlier[0] if earlier else None,
    )


def check(source: InputFile, options: SubmitOptions, *, on_read: OnRead = lambda _size: None) -> Checked:
    """Validate the input and store nothing. Raises InvalidInput, InputUnreadable, OutputPathError, UsageError."""
    _check_options(options)
    paths = _paths(source, options, f"batch_{secrets.token_hex(12)}")
    content = _read(source, options, lambda *_request: None, on_read)
    return Checked(requests=content.requests, paths=paths)


@contextmanager
def name_batch_in_errors(batch_id: str) -> Iterator[None]:
    """Name an accepted batch in whatever ends what follows: it exists, and is not to be submitted again."""
    try:
        yield
    except KeyboardInterrupt:
        raise Interrupted(
            f"interrupted; {batch_id} is accepted and continues", hint=f"vbatch watch {batch_id}"
        ) from None
    except StoreUnreachable as error:
        raise StoreUnreachable(
            f"{batch_id} is accepted, but cannot be followed: {error.message}",
            hint=error.hint,
            fault=error.fault,
        ) from error
    except BrokenPipeError:  # no process reads any more
        raise
    except OSError as error:
        raise VbatchError(
            f"{batch_id} is accepted, but that cannot be written: {error.strerror}",
            hint=f"vbatch status {batch_id}",
        ) from error


def _paths(source: InputFile, options: SubmitOptions, batch_id: str) -> OutputPaths:
    paths = choose_paths(source.path, output=options.output, error_file=options.error_file, batch_id=batch_id)
    check_paths(paths, source=source.path, batch_id=batch_id)
    return paths


def _store_patiently(
    store: Store,
    source: InputFile,
    options: SubmitOptions,
    paths: OutputPaths,
    batch_id: str,
    *,
    earlier: Sequence[Batch],
    on_read: OnRead,
) -> Batch:
    """Read a regular file from its start again when the database goes away in the middle."""
    tries = 1 if source.size is None else TRIES
    for attempt in range(1, tries + 1):
        try:
            return _store(store, source, options, paths, batch_id, earlier=earlier, on_read=on_read)
        except StoreUnreachable:
            if attempt == tries:
                raise
            store.prepare()  # waits for the database
    raise AssertionError("the last try returns or raises")


def _store(
    store: Store,
    source: InputFile,
    options: SubmitOptions,
    paths: OutputPaths,
    batch_id: str,
    *,
    earlier: Sequence[Batch],
    on_read: OnRead,
) -> Batch:
    now = datetime.now(UTC)
    new = NewBatch(
        id=batch_id,
        endpoint="",
        name=options.name,
        priority=options.priority,
        metadata=dict(options.metadata or {}) | ({REUSE_OF: earlier[0].id} if earlier else {}),
        input_path=None if source.path is None else str(source.path),
        output_path=str(paths.output),
        error_path=str(paths.errors),
        expires_at=now + options.expires_in if options.expires_in is not None else None,
        created_at=now,
    )
    with ingest.ingest(store, new=new, submitter=processes.current()) as storing:
        content = _read(source, options, storing.add, on_read)
        return storing.accept(
            endpoint=content.endpoint,
            input_sha256=content.sha256,
            earlier=earlier,
        )


def _read(
    source: InputFile,
    options: SubmitOptions,
    add: Callable[[int, str, str, bytes], None],
    on_read: OnRead,
) -> _Content:
    """Validate every line; ``add`` takes the requests until one is bad. Raises InvalidInput, InputUnreadable."""
    validator = Validator(model=options.model)
    check_line, defects = validator.check, validator.defects
    replace = options.model is not None
    requests = 0
    with source.open() as stream:
        lines = LineReader(stream, on_read=on_read)
        for number, line in lines:
            checked = check_line(number, line)
            if checked is None or defects.total:
                continue
            request, model = checked
            body = bytes(request.body)
            add(number, request.custom_id, model, with_model(body, model) if replace else body)
            requests += 1
        validator.finish(cut_off=lines.cut_off)
        if defects.total:
            raise InvalidInput(defects, source=source.name)
        stream.check_unchanged()
    assert validator.endpoint is not None
    return _Content(requests=requests, endpoint=validator.endpoint, sha256=lines.sha256, size=lines.size)


def _check_options(options: SubmitOptions) -> None:
    if abs(options.priority) > MOST_PRIORITY:
        raise UsageError(f"--priority takes a number between -{MOST_PRIORITY:,} and {MOST_PRIORITY:,}")
    if options.model == "":
        raise UsageError("--model names no model")
    metadata = options.metadata or {}
    if len(metadata) > METADATA_PAIRS:
        raise UsageError(f"a batch takes at most {METADATA_PAIRS} metadata pairs, not {len(metadata)}")
    for key, value in metadata.items():
        if not 0 < len(key) <= METADATA_KEY or len(value) > METADATA_VALUE:
            raise UsageError(
                f"metadata {key!r}: keys have 1 to {METADATA_KEY} characters, values at most {METADATA_VALUE}"
            )
