"""Write the files of a batch whose requests are all finished, then say that it is completed: in this order.

May be interrupted anywhere and repeated by anyone: the files are made of recorded results alone, byte by byte
the same each time, and appear under their names only when they are whole and durable.
"""

from __future__ import annotations

import logging
from contextlib import ExitStack
from pathlib import Path

from vbatch import processes
from vbatch.batches.lines import output_line, succeeded
from vbatch.jsonl import AtomicFile, atomic_file
from vbatch.store import Store, answers, catalog, endings, registry
from vbatch.store.records import Batch

log = logging.getLogger(__name__)


def finalize(store: Store, batch: Batch, *, by: str) -> Batch | None:
    """Write output and error file and end the batch. None when somebody else does so already.

    Where another file has taken a name meanwhile, ours appears beside it, with the batch's id in its name.
    Like OpenAI, a batch without failed requests has no error file, and one without answers no output file.
    Raises OSError when the disk refuses; the batch then stays as it is. Raises NoSuchBatch, with no file written,
    where the batch was deleted meanwhile.
    """
    taken = endings.start_finalizing(store, pk=batch.pk, by=by)
    if taken is None:
        return None
    try:
        output, errors = _write(store, taken)
    except OSError:
        endings.hand_back(store, pk=taken.pk, by=by)
        raise
    return endings.finish(store, pk=taken.pk, by=by, output_path=str(output), error_path=str(errors))


def finalize_here(store: Store, batch: Batch) -> Batch:
    """Finalize a batch from a command, unless a worker lives that will; return how the batch then stands.

    Raises OSError when the disk refuses.
    """
    if not all(processes.is_gone(worker.identity) for worker in registry.live(store)):
        return batch
    return finalize(store, batch, by=_this_command()) or catalog.by_pk(store, pk=batch.pk)


def _this_command() -> str:
    """Return a name for this process that no other one ever has."""
    identity = processes.current()
    return f"command_{identity.boot_id}_{identity.pid}_{identity.start_ticks}"


def _write(store: Store, batch: Batch) -> tuple[Path, Path]:
    """Write both files, each only if it has lines; return where they are."""
    paths = {True: Path(batch.output_path), False: Path(batch.error_path)}
    files: dict[bool, AtomicFile] = {}
    with ExitStack() as stack:
        for answer in answers.finished(store, pk=batch.pk):
            good = succeeded(answer)
            if good not in files:
                files[good] = stack.enter_context(atomic_file(paths[good], tag=batch.id))
            files[good].write(output_line(batch.id, answer))
    for good, file in files.items():
        if file.path != paths[good]:
            log.warning("batch.output_renamed batch=%s file=%s taken=%s", batch.id, file.path, paths[good])
            paths[good] = file.path
    return paths[True], paths[False]
