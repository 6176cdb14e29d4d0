"""Batches of programs: there at once, in ``validating``; validated behind, with the same reader as ``submit``.

A file that is not valid ends the batch as ``failed``, with every bad line. A validation that a crash cut off begins
again: what it had written is invisible, and goes first.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

from vbatch.batches.content import ForeignFile, InvalidInput, read
from vbatch.batches.files import NoSuchFile, made_files, place
from vbatch.batches.find import REUSE_OF, with_retries
from vbatch.batches.input_file import InputFile
from vbatch.batches.prefix_order import PrefixOrder
from vbatch.batches.submit import MOST_PRIORITY
from vbatch.errors import InputUnreadable, NoSuchBatch, UsageError
from vbatch.protocol import BatchStatus
from vbatch.store import Store, catalog, files, ingest, served
from vbatch.store.records import SEVERAL, Batch, NewBatch
from vbatch.store.tables import REQUEST
from vbatch.system import processes
from vbatch.text import count

DAY = "24h"
KEY_HOLDS = timedelta(hours=24)  # for so long the same Idempotency-Key means the same batch
REPEATED = timedelta(minutes=11)  # a client waits 10 minutes for an answer before it asks again

_entering = threading.Lock()  # one request at a time looks for its equal and enters


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What a program asks for. ``window`` ends the batch after this time; None: never.

    ``repeated``: the client has sent this request before and got no answer.
    """

    input_file: str
    endpoint: str
    completion_window: str = DAY
    window: timedelta | None = None
    metadata: Mapping[str, str]
    output_expires_after: timedelta | None = None
    name: str | None = None
    priority: int = 0
    reuse: str | None = None
    strict: bool = False
    notify: str | None = None
    key: str | None = None
    repeated: bool = False


def create(store: Store, folder: Path, wanted: Wanted) -> Batch:
    """Enter a batch and return it at once; the one that the same request made before, where there is one.

    Raises NoSuchFile, NoSuchBatch, UsageError.
    """
    if abs(wanted.priority) > MOST_PRIORITY:
        raise UsageError(f"priority is a number between -{MOST_PRIORITY:,} and {MOST_PRIORITY:,}")
    me = processes.current()
    with _entering:
        if (earlier := _same(store, wanted)) is not None:
            return earlier
        where = place(folder, wanted.input_file)
        found = files.get(store, file_id=wanted.input_file)
        if found is None or found.host != me.host or not where.is_file():
            raise NoSuchFile(f"there is no file {wanted.input_file!r}")
        reuse = None if wanted.reuse is None else catalog.find(store, wanted.reuse)
        now = store.now()
        batch_id = f"batch_{secrets.token_hex(12)}"
        output, errors = made_files(batch_id)
        new = NewBatch(
            id=batch_id,
            endpoint=wanted.endpoint,
            name=wanted.name,
            priority=wanted.priority,
            metadata=dict(wanted.metadata) | ({} if reuse is None else {REUSE_OF: reuse.id}),
            input_path=None,
            output_path=str(place(folder, output)),
            error_path=str(place(folder, errors)),
            expires_at=None if wanted.window is None else now + wanted.window,
            created_at=now,
            notify=wanted.notify,
            input_file=wanted.input_file,
            asked={
                "completion_window": wanted.completion_window,
                "metadata": dict(wanted.metadata),
                "output_expires_after": _seconds(wanted.output_expires_after),
                "strict": wanted.strict,
                "reuse": None if reuse is None else reuse.id,
                "key": wanted.key,
            },
        )
        return served.enter(store, new, me)


def waiting(store: Store) -> list[Batch]:
    """Return the batches that are to be validated here, the oldest first."""
    return served.to_validate(store, host=processes.current().host)


def sweep(store: Store) -> None:
    """Remove what a server that was killed left of batches that were cancelled or refused."""
    served.sweep(store, host=processes.current().host)


def validate(store: Store, folder: Path, batch: Batch) -> Batch:
    """Read the file of a batch: the batch is in progress then, or has failed. Return it as it is then.

    One that was cancelled meanwhile stays so. Raises StoreUnreachable; then it is to be validated again.
    """
    if not served.begin(store, pk=batch.pk, submitter=processes.current()):
        return catalog.by_pk(store, pk=batch.pk)
    try:
        batch = _ingest(store, folder, batch)
    except InvalidInput as error:
        return _refuse(store, batch, _all_kept(error))
    except (ForeignFile, InputUnreadable, NoSuchFile, NoSuchBatch) as error:
        return _refuse(store, batch, [{"code": error.code, "message": error.message}])
    except _WrongEndpoint as error:
        return _refuse(store, batch, [{"code": "invalid_url", "message": str(error), "param": "endpoint"}])
    if batch.status.final:  # cancelled meanwhile
        sweep(store)
    return batch


class _WrongEndpoint(Exception):
    pass


def _ingest(store: Store, folder: Path, batch: Batch) -> Batch:
    asked = batch.asked or {}
    where = place(folder, batch.input_file or "")
    if not where.is_file():
        raise NoSuchFile(f"the content of {batch.input_file} is not there any more")
    source = InputFile.at(where)
    # In a message the file has the name that the client gave it; its place is no business of the client's.
    found = files.get(store, file_id=batch.input_file or "")
    source = InputFile(
        name=found.filename if found is not None else batch.input_file or "",
        path=source.path,
        size=source.size,
        source=source.source,
    )
    earlier: Sequence[Batch] = ()
    if asked.get("reuse") is not None:
        earlier = with_retries(store, catalog.find(store, asked["reuse"]))
    new = NewBatch(
        id=batch.id,
        endpoint=batch.endpoint,
        name=batch.name,
        priority=batch.priority,
        metadata=batch.metadata,
        input_path=None,
        output_path=batch.output_path,
        error_path=batch.error_path,
        expires_at=batch.expires_at,
        created_at=batch.created_at,
    )
    with store.bulk_insert(REQUEST) as inserting:
        storing = ingest.Ingest(store, batch.pk, new, inserting)
        order = PrefixOrder(storing)
        content = read(source, None, order.add_all, lambda _size: None, strict=bool(asked.get("strict")))
        order.finish()
        if content.endpoint != batch.endpoint:
            lines = "several endpoints" if content.endpoint == SEVERAL else content.endpoint
            raise _WrongEndpoint(f"The requests of the file are for {lines}, not for {batch.endpoint}.")
        return storing.accept(
            endpoint=content.endpoint,
            input_sha256=content.sha256,
            earlier=earlier,
            ignored=[asdict(each) for each in content.ignored],
        )


def _refuse(store: Store, batch: Batch, errors: Sequence[Mapping[str, Any]]) -> Batch:
    return served.refuse(store, pk=batch.pk, errors=errors)


def _all_kept(found: InvalidInput) -> list[dict[str, Any]]:
    kept = [_as_kept(each) for each in found.errors]
    if (more := found.total - len(kept)) > 0:  # else these would look like all of them
        kept.append({"code": "more_errors", "message": f"The file has {count(more, 'problem')} more."})
    return kept


def _as_kept(error: Any) -> dict[str, Any]:
    return {"code": error.code, "message": error.message, "line": error.line, "param": error.param}


def _same(store: Store, wanted: Wanted) -> Batch | None:
    """Return the batch that the same request has made.

    Raises UsageError for a key that was used for another request.
    """
    now = store.now()
    if wanted.key is not None:
        for batch in served.asked_since(store, since=now - KEY_HOLDS):
            if (batch.asked or {}).get("key") == wanted.key:
                if not _alike(batch, wanted):
                    raise UsageError("this Idempotency-Key was used for another request")
                return batch
        return None
    if wanted.repeated:
        for batch in served.of_file(store, file_id=wanted.input_file, since=now - REPEATED):
            if batch.status is not BatchStatus.CANCELLED and _alike(batch, wanted):
                return batch
    return None


def _alike(batch: Batch, wanted: Wanted) -> bool:
    """Whether a batch is what is wanted; what it reuses is compared as it was found then."""
    asked = batch.asked or {}
    return (
        batch.input_file == wanted.input_file
        and batch.endpoint == wanted.endpoint
        and batch.name == wanted.name
        and batch.priority == wanted.priority
        and asked.get("metadata") == dict(wanted.metadata)
        and asked.get("completion_window") == wanted.completion_window
        and asked.get("output_expires_after") == _seconds(wanted.output_expires_after)
        and bool(asked.get("strict")) == wanted.strict
        and (asked.get("reuse") is None) == (wanted.reuse is None)
    )


def _seconds(time: timedelta | None) -> int | None:
    return None if time is None else int(time.total_seconds())
