"""``list``, ``status``, ``cancel``, ``retry``, ``delete``: one look at batches, or one change of one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.console import RenderableType

from vbatch import batches
from vbatch.batches import Status, documents
from vbatch.cli import screens, workers
from vbatch.cli.listing import BatchTable
from vbatch.cli.output import Mode, Output
from vbatch.cli.startup import open_store
from vbatch.cli.targets import target
from vbatch.errors import VbatchError
from vbatch.store import catalog
from vbatch.store.records import Batch, Worker

NEWEST = 20
EVERY = 1_000_000


def list_batches(*, every: bool, json: bool, quiet: bool) -> None:
    """Show the newest batches, or all."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        limit = EVERY if every else NEWEST
        found = catalog.recent(store, limit=limit + 1)
    if found or output.mode is not Mode.HUMAN:
        output.show(_List(found[:limit], has_more=len(found) > limit))
    if not found:
        output.note("no batch yet; submit one with: vbatch submit prompts.jsonl")
    elif len(found) > limit and output.mode is Mode.HUMAN:
        output.note(f"these are the newest {limit}; all of them: vbatch list --all")


def show_status(ref: str, *, json: bool, quiet: bool) -> None:
    """Show how one batch stands."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        status = batches.status(store, ref)
        at_work = None if status.batch.status.final else workers.at_work(store)
    output.show(StatusView(status, at_work))


def cancel_batch(ref: str, *, json: bool, quiet: bool) -> None:
    """Cancel one batch."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        batch = catalog.find(store, ref)
        try:
            batch = batches.cancel(store, batch)
        except OSError as error:
            raise VbatchError(
                f"{batch.id} is cancelled, but {error.filename} cannot be written: {error.strerror}",
                hint=f"mend that and cancel it again; or give its files up: vbatch delete --force {batch.id}",
            ) from error
    output.show(_Changed(batch, f"{batch.status}: {_kept(batch)}"))


def retry_batch(ref: str, *, output_path: str | None, json: bool, quiet: bool) -> None:
    """Make a new batch of the failed requests of one."""
    output = Output.of(json=json, quiet=quiet)
    chosen = target(output_path, "-o")
    with open_store(output) as store:
        made = batches.retry(store, catalog.find(store, ref), output=chosen)
    with batches.told(made.id):
        output.show(IdAlone(made))
        if output.mode is Mode.HUMAN:
            output.note(screens.accepted(made))


def delete_batch(ref: str, *, force: bool, json: bool, quiet: bool) -> None:
    """Remove one batch from the store."""
    output = Output.of(json=json, quiet=quiet)
    with open_store(output) as store:
        batch = catalog.find(store, ref)
        catalog.delete_batch(store, pk=batch.pk, force=force)
    output.show(_Deleted(batch))


@dataclass(frozen=True, slots=True)
class IdAlone:
    """A new batch: stdout carries its id, so that a script can take it."""

    batch: Batch

    def ids(self) -> Sequence[str]:
        return [self.batch.id]

    def document(self) -> dict[str, Any]:
        return documents.batch(self.batch)

    def screen(self) -> RenderableType:
        return self.batch.id


@dataclass(frozen=True, slots=True)
class StatusView:
    """One batch in full. ``workers`` are those that live, None when nobody needs to work on it."""

    status: Status
    workers: Sequence[Worker] | None

    def ids(self) -> Sequence[str]:
        return [self.status.batch.id]

    def document(self) -> dict[str, Any]:
        return documents.status(self.status, self.workers or ())

    def screen(self) -> RenderableType:
        words = None if self.workers is None else workers.in_words(self.workers)
        return screens.status(self.status, worker=words)


@dataclass(frozen=True, slots=True)
class _List:
    batches: Sequence[Batch]
    has_more: bool

    def ids(self) -> Sequence[str]:
        return [batch.id for batch in self.batches]

    def document(self) -> dict[str, Any]:
        return documents.batch_list(self.batches, has_more=self.has_more)

    def screen(self) -> RenderableType:
        return BatchTable(self.batches)


@dataclass(frozen=True, slots=True)
class _Changed:
    batch: Batch
    words: str

    def ids(self) -> Sequence[str]:
        return [self.batch.id]

    def document(self) -> dict[str, Any]:
        return documents.batch(self.batch)

    def screen(self) -> RenderableType:
        return f"{self.batch.id} is {self.words}"


@dataclass(frozen=True, slots=True)
class _Deleted:
    batch: Batch

    def ids(self) -> Sequence[str]:
        return [self.batch.id]

    def document(self) -> dict[str, Any]:
        return documents.deleted(self.batch)

    def screen(self) -> RenderableType:
        return f"{self.batch.id} is deleted; its files stay"


def _kept(batch: Batch) -> str:
    counts = batch.counts
    return f"{counts.completed + counts.failed:,} of {counts.total:,} requests were finished and stay"
