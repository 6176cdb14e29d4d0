"""How batches end: finalized (their files written, then their status set: in this order), cancelled, deleted.

Finalizing may be interrupted anywhere and repeated by any process: the files are made of recorded results alone, byte
by byte the same each time, and appear under their names only when they are whole and durable.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path

from vbatch import recovery
from vbatch.batches import writing
from vbatch.batches.paths import OutputPaths
from vbatch.batches.results import output_line, succeeded
from vbatch.errors import StoreReplaced, VbatchError, WrongStatus
from vbatch.protocol import BatchStatus
from vbatch.store import Store, catalog, duplicates, finalization, registry, results
from vbatch.store.records import COMMAND, Batch
from vbatch.system import processes
from vbatch.system.files import AtomicFile, atomic_file

log = logging.getLogger(__name__)

Made = Callable[[OutputPaths], None]

HEARTBEAT = timedelta(seconds=20)
_SOON_ENDED = (BatchStatus.FINALIZING, BatchStatus.CANCELLING)  # no request of it is open


def finalize(
    store: Store, batch: Batch, *, by: str, paths: OutputPaths | None = None, made: Made = lambda _paths: None
) -> Batch | None:
    """Write output and error file and end the batch. None when another process already does so.

    ``paths`` take the place of those that the batch names: the files are then for this account alone. ``made`` is
    called when the files are durable, before the batch has ended.

    Where another file has taken a name meanwhile, the batch's file gets a name with the batch's id beside it.
    Like OpenAI, a batch without failed requests has no error file, and one without answers no output file.
    Raises OSError when the disk refuses; the batch then stays as it is. Raises NoSuchBatch, with no file written,
    where the batch was deleted meanwhile.
    """
    taken = finalization.start_finalizing(store, pk=batch.pk, by=by)
    if taken is None:
        return None
    try:
        duplicates.answer(store, pk=taken.pk, ended=True)
        places = paths or OutputPaths(output=Path(taken.output_path), errors=Path(taken.error_path))
        output, errors = _write(store, taken, places, mode=0o666 if paths is None else 0o600)
        made(OutputPaths(output=output, errors=errors))
    except OSError:
        finalization.hand_back(store, pk=taken.pk, by=by)
        raise
    return finalization.finish(store, pk=taken.pk, by=by, output_path=str(output), error_path=str(errors))


def finalize_here(store: Store, batch: Batch) -> Batch:
    """Finalize a batch from a command, unless a live worker or another command will; return the batch as it is then.

    Those of a program's batch are the server's to write, and those of another host's that host's. Raises OSError when
    the disk refuses.
    """
    elsewhere = writing.waits_for(store, batch) is not None
    if batch.input_file is not None or elsewhere or writing.has_writer(store, batch, recovery.alive(store)):
        return batch
    recovery.forget_dead_commands(store)
    ended = None
    with registered(store) as me, suppress(BlockingIOError):  # another process is writing the same file
        ended = finalize(store, batch, by=me)
    return ended or catalog.by_pk(store, pk=batch.pk)


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


def request_cancel(store: Store, reference: str) -> Batch:
    """Cancel a batch and leave its files to a worker, or to the server that it was made by.

    Raises NoSuchBatch, AmbiguousBatch, WrongStatus when it has already ended.
    """
    return finalization.request_cancel(store, pk=catalog.find(store, reference).pk)


def delete(store: Store, reference: str, *, force: bool = False) -> Batch:
    """Remove a batch that has ended from the store; its files stay. Return it as it was.

    With ``force`` also one whose files could not be written. Raises NoSuchBatch, AmbiguousBatch, WrongStatus.
    """
    batch = catalog.find(store, reference)
    writer = registry.finalizer(store, pk=batch.pk)
    if not batch.status.final and writer is not None and not processes.is_gone(writer.identity):
        raise WrongStatus(
            f"another process is writing the files of {batch.id}", hint=f"vbatch watch {batch.id}"
        )
    if not force and (host := writing.waits_for(store, batch)) is not None:
        raise WrongStatus(
            f"{batch.id} has not ended; {writing.explained(batch, host)}",
            hint=f"without its files: vbatch delete --force {batch.id}",
        )
    if not force and batch.status in _SOON_ENDED and recovery.alive(store):
        raise WrongStatus(
            f"{batch.id} is still {batch.status}: a worker writes its files soon",
            hint=f"vbatch watch {batch.id}",
        )
    catalog.delete_batch(store, pk=batch.pk, force=force)
    return batch


def delete_ended(store: Store, *, before: timedelta) -> list[Batch]:
    """Remove every batch that ended longer ago than this; their files stay. Return them as they were."""
    found = catalog.ended_before(store, moment=store.now() - before)
    for batch in found:
        catalog.delete_batch(store, pk=batch.pk)
    return found


@contextmanager
def registered(
    store: Store, *, replaced: Callable[[StoreReplaced], None] = lambda _error: None
) -> Iterator[str]:
    """Give this command an identity in the store, like a worker's, for as long as it writes files.

    Without one it would look dead to others, who would write the same files. Its heartbeat is for other machines;
    ``replaced`` is called where it meets another store.
    """
    me = registry.register(store, identity=processes.current(), engine=COMMAND)
    done = threading.Event()

    def beat() -> None:
        beaten = 0
        while not done.wait(HEARTBEAT.total_seconds()):
            try:
                beaten = registry.heartbeat(store, worker=me, models=(), note=None, known=beaten)
            except StoreReplaced as error:
                replaced(error)
                return
            except VbatchError:
                continue

    beating = threading.Thread(target=beat, daemon=True)
    beating.start()
    try:
        yield me
    finally:
        done.set()
        beating.join()
        with suppress(StoreReplaced):  # the one that is there now never knew it
            registry.stop(store, worker=me)


def _write(store: Store, batch: Batch, places: OutputPaths, *, mode: int) -> tuple[Path, Path]:
    """Write both files, each only if it has lines; return where they are."""
    paths = {True: places.output, False: places.errors}
    files: dict[bool, AtomicFile] = {}
    with ExitStack() as stack:
        for answer in results.finished(store, pk=batch.pk):
            good = succeeded(answer)
            if good not in files:
                files[good] = stack.enter_context(atomic_file(paths[good], tag=batch.id, mode=mode))
            files[good].write(output_line(batch.id, answer))
            del answer  # before the next one is read: it may be large
    for good, file in files.items():
        if file.path != paths[good]:
            log.warning("batch.output_renamed batch=%s file=%s taken=%s", batch.id, file.path, paths[good])
            paths[good] = file.path
    return paths[True], paths[False]
