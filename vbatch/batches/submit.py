"""Accept a batch whole or refuse it with every bad line named; a crash in between leaves no trace."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Literal

from vbatch.batches.content import OnRead, read
from vbatch.batches.dedupe import adding
from vbatch.batches.estimate import Sampler
from vbatch.batches.finalize import finalize_here
from vbatch.batches.find import RESERVED, REUSE_OF, reusable
from vbatch.batches.input_file import InputFile
from vbatch.batches.paths import OutputPaths, check_paths, choose_paths, refuse_in_use
from vbatch.batches.prefix_order import PrefixOrder
from vbatch.batches.skipping import bad_lines, choose_file, write_lines
from vbatch.engine.ignored import IgnoredField
from vbatch.errors import (
    Interrupted,
    OutputPathError,
    StoreUnreachable,
    UsageError,
    VbatchError,
)
from vbatch.store import Store, catalog, duplicates, ingest, staging
from vbatch.store.records import DEDUPE, Batch, NewBatch
from vbatch.system import processes

# OpenAI's limits of a batch's metadata.
METADATA_PAIRS, METADATA_KEY, METADATA_VALUE = 16, 64, 512
MOST_PRIORITY = 1_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class SubmitOptions:
    """What ``submit`` is asked for. ``order``: requests that begin alike are worked on together, or as in the file."""

    model: str | None = None
    output: Path | None = None
    error_file: Path | None = None
    name: str | None = None
    priority: int = 0
    metadata: Mapping[str, str] | None = None
    expires_in: timedelta | None = None
    reuse: str | None = None
    skip_invalid: bool = False
    strict: bool = False
    order: Literal["prefix", "file"] = "prefix"
    notify: str | None = None
    dedupe: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Submitted:
    """What ``submit`` did. ``repeats`` are the earlier batches of the same bytes, ``duplicates`` the requests that do
    not run because an identical one does.

    ``reused_from`` is the batch whose answers were looked at; how many were taken is in ``batch.reused``.
    ``invalid`` is the file that has the lines which were left out, None where there were none.
    """

    batch: Batch
    repeats: Sequence[Batch]
    reused_from: Batch | None
    invalid: Path | None = None
    duplicates: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Checked:
    """An input that ``submit`` would accept, and where its files would go.

    ``skipped`` lines would be left out, and written to ``invalid``; None where there are none. ``seen`` is what an
    estimate is made of.
    """

    requests: int
    skipped: int
    paths: OutputPaths
    invalid: Path | None
    ignored: tuple[IgnoredField, ...]
    seen: Sampler


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
    bad, invalid = _left_out(source, options, paths, batch_id)
    batch = ingest.patiently(
        store,
        lambda: _store(store, source, options, paths, batch_id, earlier=earlier, on_read=on_read, bad=bad),
        tries=1 if source.size is None else ingest.TRIES,  # a pipe cannot be read again
        bound=bool(earlier),
    )
    with name_batch_in_errors(batch.id):
        if invalid is not None:
            invalid = write_lines(source, bad, invalid, batch=batch)
        if batch.counts.completed == batch.counts.total:
            with suppress(OSError):  # then the next worker writes the files
                batch = finalize_here(store, batch)
        repeats = catalog.same_input(store, input_sha256=batch.input_sha256)
    return Submitted(
        batch=batch,
        repeats=tuple(repeat for repeat in repeats if repeat.pk != batch.pk),
        reused_from=earlier[0] if earlier else None,
        invalid=invalid,
        duplicates=duplicates.waiting(store, pk=batch.pk) if options.dedupe else 0,
    )


def check(source: InputFile, options: SubmitOptions, *, on_read: OnRead = lambda _size: None) -> Checked:
    """Validate the input and store nothing. Raises InvalidInput, InputUnreadable, OutputPathError, UsageError."""
    _check_options(options)
    batch_id = f"batch_{secrets.token_hex(12)}"
    paths = _paths(source, options, batch_id)
    bad, invalid = _left_out(source, options, paths, batch_id)
    seen = Sampler()
    with adding(seen, dedupe=options.dedupe) as add:
        content = read(source, options.model, add, on_read, bad=bad, strict=options.strict)
    return Checked(
        requests=content.requests,
        skipped=len(bad),
        paths=paths,
        invalid=invalid,
        ignored=content.ignored,
        seen=seen,
    )


def check_together(store: Store, checked: Sequence[tuple[str, Checked]]) -> None:
    """Refuse inputs, by name, whose batches would write the same file, or one that is taken. Raises OutputPathError."""
    writers: dict[Path, str] = {}
    for name, each in checked:
        for path in filter(None, (each.paths.output, each.paths.errors, each.invalid)):
            if path in writers:
                raise OutputPathError(
                    f"the batches of {writers[path]} and {name} would both write {path}",
                    hint=f"vbatch submit {name} -o PATH",
                )
            writers[path] = name
    staging.sweep(store, gone=processes.is_gone)
    refuse_in_use(store, *writers)


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


def _left_out(
    source: InputFile, options: SubmitOptions, paths: OutputPaths, batch_id: str
) -> tuple[frozenset[int], Path | None]:
    """Return the lines to leave out, and the file for them where there are any."""
    bad = bad_lines(source, model=options.model) if options.skip_invalid else frozenset()
    return bad, choose_file(source, paths, batch_id=batch_id) if bad else None


def _store(
    store: Store,
    source: InputFile,
    options: SubmitOptions,
    paths: OutputPaths,
    batch_id: str,
    *,
    earlier: Sequence[Batch],
    on_read: OnRead,
    bad: frozenset[int],
) -> Batch:
    now = store.now()
    new = NewBatch(
        id=batch_id,
        endpoint="",
        name=options.name,
        priority=options.priority,
        metadata=dict(options.metadata or {})
        | ({REUSE_OF: earlier[0].id} if earlier else {})
        | ({DEDUPE: "true"} if options.dedupe else {}),
        input_path=None if source.path is None else str(source.path),
        output_path=str(paths.output),
        error_path=str(paths.errors),
        expires_at=now + options.expires_in if options.expires_in is not None else None,
        created_at=now,
        notify=options.notify,
    )
    with ingest.ingest(store, new=new, submitter=processes.current()) as storing:
        order = PrefixOrder(storing, keep=options.order == "file")
        with adding(order, dedupe=options.dedupe) as add:
            content = read(source, options.model, add, on_read, bad=bad, strict=options.strict)
        order.finish()
        return storing.accept(
            endpoint=content.endpoint,
            input_sha256=content.sha256,
            earlier=earlier,
            skipped=len(bad),
            ignored=[asdict(each) for each in content.ignored],
        )


def _check_options(options: SubmitOptions) -> None:
    if abs(options.priority) > MOST_PRIORITY:
        raise UsageError(f"--priority takes a number between -{MOST_PRIORITY:,} and {MOST_PRIORITY:,}")
    if options.model == "":
        raise UsageError("--model names no model")
    metadata = options.metadata or {}
    if len(metadata) > METADATA_PAIRS:
        raise UsageError(f"a batch takes at most {METADATA_PAIRS} metadata pairs, not {len(metadata)}")
    for key, value in metadata.items():
        if not isinstance(key, str) or not isinstance(value, str):  # of a program
            raise UsageError(f"metadata {key!r}: keys and values are texts")
        if key in RESERVED:
            raise UsageError(f"metadata {key!r} is set by vbatch itself", hint="--dedupe")
        if not 0 < len(key) <= METADATA_KEY or len(value) > METADATA_VALUE:
            raise UsageError(
                f"metadata {key!r}: keys have 1 to {METADATA_KEY} characters, values at most {METADATA_VALUE}"
            )
