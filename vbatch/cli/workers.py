"""Who works on the queue: what a person looks at when nothing moves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vbatch import config
from vbatch.cli.words import count
from vbatch.engine import kinds
from vbatch.store import Store, overview, registry
from vbatch.store.overview import Backlog
from vbatch.store.records import Batch, Worker
from vbatch.system import processes
from vbatch.text import one_line


@dataclass(frozen=True, slots=True, kw_only=True)
class AtWork:
    """The workers that live, as far as that can be known from here, and what none of them serves.

    ``unserved`` are models of a batch; ``command`` starts a worker for them, or for the files of a batch.
    """

    workers: Sequence[Worker]
    unserved: Sequence[str]
    command: str

    @property
    def hint(self) -> str | None:
        """What is missing for the batch to be worked on, and how to start it."""
        if not self.workers:
            return f"no worker is running; start one with: {self.command}"
        if self.unserved:
            return f"no running worker serves {_models(self.unserved)}; start one with: {self.command}"
        return None

    @property
    def words(self) -> str:
        """Say who works, and what is the matter with it."""
        if not self.workers:
            return f"none is running; start one with: {self.command}"
        words = [_in_words(worker) for worker in self.workers]
        if self.unserved:
            words.append(f"none serves {_models(self.unserved)}; start one with: {self.command}")
        return "; ".join(words)


def at_work(store: Store, batch: Batch) -> AtWork:
    """Look for the workers that live, and for what of this batch waits for another kind of worker."""
    workers = [worker for worker in registry.live(store) if not processes.is_gone(worker.identity)]
    waiting = [backlog.model for backlog in overview.left(store, pk=batch.pk).models if backlog.waiting]
    unserved = [
        model for model in waiting if not any(kinds.may_serve(worker.engine, model) for worker in workers)
    ]
    default = config.load().engine
    commands = dict.fromkeys(kinds.worker_command(model, default=default) for model in unserved)
    return AtWork(workers=workers, unserved=unserved, command=" and ".join(commands) or "vbatch run-worker")


def left_alone(backlog: Backlog) -> str:
    """Say what a worker left to another kind of worker."""
    verb = "waits" if backlog.waiting == 1 else "wait"
    model, engine = one_line(backlog.model, limit=60), kinds.for_model(backlog.model).title
    command = kinds.worker_command(backlog.model)
    return f"{count(backlog.waiting, 'request')} for {model} {verb} for a worker with {engine}: {command}"


def _models(models: Sequence[str]) -> str:
    first = one_line(models[0], limit=60)
    return first if len(models) == 1 else f"{first} and {count(len(models) - 1, 'other model')}"


def _in_words(worker: Worker) -> str:
    words = f"process {worker.identity.pid} on {worker.identity.host}"
    if worker.model is not None:
        words += f", {one_line(worker.model, limit=60)}"
    if worker.note is not None:
        words += f": {one_line(worker.note, limit=200)}"
    return words
