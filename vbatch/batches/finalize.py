"""How batches end: finalized (their files written, then their status set: in this order), cancelled, deleted.

Finalizing may be interrupted anywhere and repeated by any process: the files are made of recorded results alone, byte
by byte the same each time, and appear under their names only when they are whole and durable.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from vbatch.batches.results import output_line, succeeded
from vbatch.batches.workers import live_workers
from vbatch.errors import VbatchError
from vbatch.store import Store, catalog, finalization, results
from vbatch.store.records import Batch
from vbatch.system import processes
from vbatch.system.files import AtomicFile, atomic_file

log = logging.getLogger(__name__)


def finalize(store: Store, batch: Batch, *, by: str) -> Batch | None:
    """Write output and error file and end the batch. None when another process already does so.

    Where another file has taken a name meanwhile, the batch's file gets a name with the batch's id beside it.
    Like OpenAI, a batch without failed requests has no error file, and one without answers no output file.
    Raises OSError when the disk refuses; the batch then stays as it is. Raises NoSuchBatch, with no file written,
    where the batch was deleted meanwhile.
    """
    taken = finalization.start_finalizing(store, pk=batch.pk, by=by)
    if taken is None:
        return None
    try:
        output, errors = _write(store, taken)
    except OSError:
        finalization.hand_back(store, pk=taken.pk, by=by)
        raise
    return finalization.finish(store, pk=taken.pk, by=by, output_path=str(output), error_path=str(errors))


def finalize_here(store: Store, batch: Batch) -> Batch:
    """Finalize a batch from a command, unless a live worker will; return the batch as it is then.

    Raises OSError when the disk refuses.
    """
    if live_workers(store):
        return batch
    return finalize(store, batch, by=_this_command()) or catalog.by_pk(store, pk=batch.pk)


def cancel(store: Store, reference: str) -> Batch:
    """Cancel a batch: no request of it starts any more, what is finished stays.

    Where no live worker would write its files, they are written here. Raises NoSuchBatch, AmbiguousBatch,
    WrongStatus when it has already ended, VbatchError when its files cannot be written.
    """
    batch = finalization.request_cancel(store, pk=catalog.find(store, reference).pk)
    try:
        return finalize_here(store, batch)
    except OSError as error:
        raise VbatchError(
            f"{batch.id} is cancelled, but {error.filename} cannot be written: {error.strerror}",
            hint=f"fix that and cancel it again, or give up its files: vbatch delete --force {batch.id}",
        ) from error


def delete(store: Store, reference: str, *, force: bool = False) -> Batch:
    """Remove a batch that has ended from the store; its files stay. Return it as it was.

    With ``force`` also one whose files could not be written. Raises NoSuchBatch, AmbiguousBatch, WrongStatus.
    """
    batch = catalog.find(store, reference)
    catalog.delete_batch(store, pk=batch.pk, force=force)
    return batch


def _this_command() -> str:
    """Return a name for this process that no other one ever has."""
    identity = processes.current()
    return f"command_{identity.boot_id}_{identity.pid}_{identity.start_ticks}"


def _write(store: Store, batch: Batch) -> tuple[Path, Path]:
    """Write both files, each only if it has lines; return where they are."""
    paths = {True: Path(batch.output_path), False: Path(batch.error_path)}
    files: dict[bool, AtomicFile] = {}
    with ExitStack() as stack:
        for answer in results.finished(store, pk=batch.pk):
            good = succeeded(answer)
            if good not in files:
                files[good] = stack.enter_context(atomic_file(paths[good], tag=batch.id))
            files[good].write(output_line(batch.id, answer))
    for good, file in files.items():
        if file.path != paths[good]:
            log.warning("batch.output_renamed batch=%s file=%s taken=%s", batch.id, file.path, paths[good])
            paths[good] = file.path
    return paths[True], paths[False]
