"""Submit the failed requests of a batch again, as a new batch."""

from __future__ import annotations

import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from os.path import lexists
from pathlib import Path
from typing import Any

from vbatch.batches.dedupe import adding
from vbatch.batches.files import made_files, place
from vbatch.batches.finalize import finalize_here
from vbatch.batches.find import RETRY_OF, deduped
from vbatch.batches.paths import OutputPaths, check_paths, paths_of, refuse_in_use
from vbatch.batches.prefix_order import ROW_BYTES, PrefixOrder, Row
from vbatch.batches.request_bodies import check_json
from vbatch.batches.workers import blocks
from vbatch.errors import WrongStatus
from vbatch.protocol import with_fields
from vbatch.store import Store, blocked, catalog, duplicates, ingest, results, staging
from vbatch.store.records import Batch, NewBatch, Span
from vbatch.store.results import FailedRequest
from vbatch.system import processes

TOGETHER_BYTES = 1 << 20  # of requests that are stored together


@dataclass(frozen=True, slots=True, kw_only=True)
class RetryOptions:
    """Which requests are submitted again, and what is changed in them.

    ``only`` is a code of failure (``http_500``, ``engine_crash``). ``cut_off``: the answers that ended at the limit of
    tokens, in place of the failures. ``changes`` are fields of the bodies; None removes one. With a ``model``, the
    requests of an unfinished batch that wait for a model which cannot be loaded are taken out of it. With a ``folder``
    the server writes the files there, under their ids.
    """

    model: str | None = None
    only: str | None = None
    cut_off: bool = False
    changes: Mapping[str, Any] = field(default_factory=dict)
    output: Path | None = None
    folder: Path | None = None


def retry(store: Store, reference: str, options: RetryOptions = RetryOptions()) -> Batch:
    """Make a new batch of the requests that ended without an answer of status 2xx: same ids, same bytes.

    Raises NoSuchBatch, AmbiguousBatch, WrongStatus while the batch is unfinished or when no request of it failed,
    OutputPathError, UsageError for changes that JSON cannot hold.
    """
    check_json(options.changes)
    batch = catalog.find(store, reference)
    if deduped(batch) and not batch.status.final:  # what has an outcome by now is not submitted again
        duplicates.answer(store, pk=batch.pk, ended=False)
    spans = _blocked_spans(store, batch) if options.model is not None and not options.cut_off else []
    if not batch.status.final and not spans:
        raise WrongStatus(f"{batch.id} is still {batch.status}", hint=f"vbatch watch {batch.id}")
    staging.sweep(store, gone=processes.is_gone)  # else a killed retry keeps its paths
    batch_id = f"batch_{secrets.token_hex(12)}"
    if options.folder is not None:
        output, errors = (place(options.folder, file_id) for file_id in made_files(batch_id))
        chosen = OutputPaths(output=output, errors=errors)
    else:
        chosen = _paths(store, batch, options.output)
        check_paths(chosen, source=None, batch_id=batch_id)
        refuse_in_use(store, chosen.output, chosen.errors)
    new = NewBatch(
        id=batch_id,
        endpoint=batch.endpoint,
        name=batch.name,
        priority=batch.priority,
        metadata={**batch.metadata, RETRY_OF: batch.id},
        input_path=batch.input_path,
        output_path=str(chosen.output),
        error_path=str(chosen.errors),
        expires_at=None,
        created_at=store.now(),
        notify=batch.notify,
        input_file=_input_file(batch) if options.folder is not None else None,
    )
    made = ingest.patiently(
        store,
        lambda: _store(store, batch, options, new, spans),
        tries=1 if spans else ingest.TRIES,  # a try whose COMMIT got no answer may have taken them out
        bound=True,
    )
    if spans and not batch.status.final:  # nothing of the old batch may be left
        with suppress(OSError):  # its folder refuses: a worker tries again
            finalize_here(store, catalog.by_pk(store, pk=batch.pk))
    return made


def _store(store: Store, batch: Batch, options: RetryOptions, new: NewBatch, spans: Sequence[Span]) -> Batch:
    with ingest.ingest(store, new=new, submitter=processes.current()) as storing:
        order = PrefixOrder(storing, keep=True)
        with adding(order, dedupe=deduped(batch)) as add:
            for (model, url), alike in groupby(
                _requests(store, batch, options, spans), attrgetter("model", "url")
            ):
                for rows in _rows(alike, options):
                    add(rows, options.model or model, url)
        order.finish()
        if storing.total == 0:
            raise WrongStatus(_nothing(batch, options), hint=f"vbatch status {batch.id}")
        return storing.accept(
            endpoint=batch.endpoint,
            input_sha256=batch.input_sha256,
            also=lambda connection: blocked.take_out(connection, pk=batch.pk, spans=spans, new_id=new.id),
        )


def _rows(requests: Iterator[FailedRequest], options: RetryOptions) -> Iterator[list[Row]]:
    """Yield requests as they are stored, some at a time."""
    changes = dict(options.changes) | ({"model": options.model} if options.model is not None else {})
    rows: list[Row] = []
    held = 0
    for request in requests:
        body = with_fields(request.body, changes) if changes else request.body
        rows.append((b"", request.line, request.custom_id, body))
        held += len(body) + ROW_BYTES
        if held > TOGETHER_BYTES:
            yield rows
            rows, held = [], 0
    if rows:
        yield rows


def _input_file(batch: Batch) -> str:
    return batch.input_file or f"file-input-{batch.id.removeprefix('batch_')}"


def _blocked_spans(store: Store, batch: Batch) -> list[Span]:
    found = blocks(store, pks=[batch.pk]).get(batch.pk)
    endpoints = {(block.model, block.url) for block in found.models} if found is not None else set()
    return blocked.waiting(store, pk=batch.pk, endpoints=endpoints)


def _requests(
    store: Store, batch: Batch, options: RetryOptions, spans: Sequence[Span]
) -> Iterator[FailedRequest]:
    if options.cut_off:
        yield from results.cut_off_requests(store, pk=batch.pk)
        return
    for request in results.failed_requests(store, pk=batch.pk, waiting=spans):
        if options.only is None or request.code == options.only:
            yield request


def _nothing(batch: Batch, options: RetryOptions) -> str:
    if options.cut_off:
        return f"no answer of {batch.id} was cut off"
    if options.only is not None:
        return f"no request of {batch.id} failed with {options.only}"
    return f"no request of {batch.id} failed"


def _paths(store: Store, batch: Batch, output: Path | None) -> OutputPaths:
    """Return the first free pair of names ``….retry.jsonl``, ``….retry2.jsonl`` …"""
    if output is not None:
        return paths_of(output)
    old_output, old_errors = Path(batch.output_path), Path(batch.error_path)
    if batch.input_file is not None:  # those are in the server's folder
        old_output, old_errors = (Path.cwd() / f"{batch.id}.{kind}.jsonl" for kind in ("output", "errors"))
    number = 1
    while True:
        tag = "retry" if number == 1 else f"retry{number}"
        pair = OutputPaths(
            output=old_output.with_name(f"{old_output.stem}.{tag}{old_output.suffix}"),
            errors=old_errors.with_name(f"{old_errors.stem}.{tag}{old_errors.suffix}"),
        )
        if not (lexists(pair.output) or lexists(pair.errors) or _in_use(store, pair)):
            return pair
        number += 1


def _in_use(store: Store, pair: OutputPaths) -> bool:
    return bool(catalog.paths_in_use(store, paths=[str(pair.output), str(pair.errors)]))
