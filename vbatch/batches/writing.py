"""Which host writes the files of a batch, and how a command writes those that wait for its own host.

A batch's files are for the host that submitted it: their paths mean something there. Workers on other hosts answer its
requests and leave the files alone; any command on its own host writes them where no worker there does.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from vbatch import recovery
from vbatch.errors import FilesElsewhere, NoSuchBatch, VbatchError
from vbatch.protocol import BatchStatus
from vbatch.store import Store
from vbatch.store.records import Batch, Worker
from vbatch.system import disks, processes

_ENDING = (BatchStatus.FINALIZING, BatchStatus.CANCELLING)


def waits_for(store: Store, batch: Batch) -> str | None:
    """Return the name of the other host that a batch waits for to write its files; None where it waits for none."""
    if not _only_lacks_files(batch) or _is_written_on(store, batch, host := processes.current().host):
        return None
    name, _, machine = (batch.host or "").partition("/")
    return name if name != host.partition("/")[0] else f"{name} (machine-id {machine[:8] or 'unknown'})"


def explained(batch: Batch, host: str) -> str:
    """Return that a batch waits for a host, and what ends that."""
    if batch.input_file is not None:
        return f"its files wait for {host}: vbatch serve there"
    return f"its files wait for {host}: any vbatch command there, or: vbatch results {batch.id} -o FILE"


def has_writer(store: Store, batch: Batch, workers: list[Worker]) -> bool:
    """Whether one of these workers writes the files of a batch."""
    return any(_is_written_on(store, batch, worker.identity.host) for worker in workers)


def due_here(store: Store, batch: Batch, workers: list[Worker]) -> bool:
    """Whether a command is to write the files of a batch: it names this host, and no worker here does it."""
    return (
        store.file is None
        and batch.input_file is None
        and batch.host == processes.current().host
        and _only_lacks_files(batch)
        and not has_writer(store, batch, workers)
    )


def write_waiting(store: Store, refused: Callable[[Batch, OSError], None]) -> list[Batch]:
    """Write the files of the batches that wait for this host, where no worker here does; return what has ended.

    Costs one short query where nothing waits, and none for a SQLite file, whose workers write them. A folder that this
    account may not write to is left to another one. ``refused`` is called where a disk refuses.
    """
    if store.file is not None:
        return []
    from vbatch.store import finalization

    waiting = finalization.to_finalize(store, by="")
    if not waiting:
        return []
    from vbatch.batches.finalize import finalize_here

    workers, ended = recovery.alive(store), []
    for batch in waiting:
        if due_here(store, batch, workers) and _may_write(Path(batch.output_path).parent):
            try:
                with suppress(NoSuchBatch):  # deleted meanwhile
                    ended.append(finalize_here(store, batch))
            except OSError as error:
                refused(batch, error)
    return [batch for batch in ended if batch.status.final]


def refusal(batch: Batch, error: OSError) -> VbatchError:
    """Return the error of a batch whose files cannot be written here."""
    return VbatchError(
        f"{batch.id} only lacks its files, but {error.filename} cannot be written: {error.strerror}",
        hint=f"vbatch results {batch.id} -o FILE",
    )


def files_elsewhere(batch: Batch, host: str) -> FilesElsewhere:
    """Return the error of a command that has waited long enough for another host."""
    done = batch.counts.completed + batch.counts.failed
    return FilesElsewhere(
        f"{batch.id} is answered, {done:,} of {batch.counts.total:,}, but {explained(batch, host)}",
        hint=f"vbatch results {batch.id} -o FILE",
    )


def _only_lacks_files(batch: Batch) -> bool:
    done = batch.counts.completed + batch.counts.failed
    return not batch.status.final and (
        batch.status in _ENDING or (batch.status is BatchStatus.IN_PROGRESS and done == batch.counts.total)
    )


def _is_written_on(store: Store, batch: Batch, host: str) -> bool:
    """Whether a process on this host writes its files (``vbatch.store.finalization.written_on``)."""
    if batch.input_file is not None:
        return batch.host == host
    return store.file is not None or batch.host in (None, host)


def _may_write(folder: Path) -> bool:
    """Whether this account writes there. Root, which may, leaves the folders of others to these."""
    if not disks.is_folder(folder):
        return True  # whatever is wrong with it is reported when it is tried
    if os.geteuid() == 0 and folder.stat().st_uid != 0:
        return False
    return os.access(folder, os.W_OK | os.X_OK)
