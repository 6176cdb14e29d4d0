"""What the server does for the batches of programs beside answering: write their files, end what is too late."""

from __future__ import annotations

import logging
from datetime import timedelta
from functools import partial
from pathlib import Path

from vbatch import recovery
from vbatch.batches.files import add_made, made_files, place
from vbatch.batches.finalize import finalize
from vbatch.batches.paths import OutputPaths
from vbatch.errors import NoSuchBatch
from vbatch.store import Store, finalization, served
from vbatch.store.records import Batch
from vbatch.system import limits, processes

log = logging.getLogger(__name__)


def finalize_served(store: Store, folder: Path, *, by: str) -> bool:
    """Write the files of the batches that wait for that, in this folder alone, whatever path a row names.

    False where the disk refused one: it is then to be tried again.
    """
    fine = True
    for batch in finalization.to_finalize(store, by=by, served=True):
        output, errors = made_files(batch.id)
        places = OutputPaths(output=place(folder, output), errors=place(folder, errors))
        made = partial(_enter, store, folder, batch)
        try:
            ended = finalize(store, batch, by=by, paths=places, made=made)
        except (NoSuchBatch, BlockingIOError):
            continue  # deleted meanwhile
        except OSError as error:
            log.error(
                "batch.output_refused batch=%s error=%s retry_seconds=%.0f", batch.id, limits.words(error), 5
            )
            fine = False
            continue
        if ended is not None:
            log.info(
                "batch.%s batch=%s completed=%d failed=%d output=%s",
                ended.status, ended.id, ended.counts.completed, ended.counts.failed, output,
            )  # fmt: skip
    return fine


def waiting_for_server(store: Store) -> list[Batch]:
    """Return the batches of programs that the server of this host is to validate, or to write the files of."""
    host = processes.current().host
    unwritten = finalization.to_finalize(store, by="", served=True)
    return [*served.to_validate(store, host=host), *unwritten]


def take_over(store: Store) -> None:
    """Let this server write what a dead one had begun to write."""
    recovery.forget_dead_commands(store)


def expire_batches(store: Store) -> list[str]:
    """Stop the batches whose time has passed, also where no worker runs; return their ids."""
    return finalization.expire(store)


def _enter(store: Store, folder: Path, batch: Batch, _made: OutputPaths) -> None:
    seconds = (batch.asked or {}).get("output_expires_after")
    after = None if seconds is None else timedelta(seconds=seconds)
    for file_id in made_files(batch.id):
        add_made(store, folder, batch, file_id, expires_after=after)
