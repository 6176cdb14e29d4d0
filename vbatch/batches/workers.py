"""Who works on a batch: the workers that are alive, and the models of it that none of them serves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from vbatch import config, recovery
from vbatch.engine import kinds
from vbatch.store import Store, overview
from vbatch.store.overview import Backlog
from vbatch.store.records import Batch, Worker


@dataclass(frozen=True, slots=True, kw_only=True)
class AtWork:
    """The workers that are alive, as far as that can be known from here, and what none of them serves.

    ``unserved`` are models of a batch; ``command`` starts a worker for them, or for the files of a batch.
    """

    workers: Sequence[Worker]
    unserved: Sequence[str]
    command: str


def at_work(store: Store, batch: Batch) -> AtWork:
    """Return the workers that are alive, and what of this batch waits for another kind of worker."""
    workers = recovery.alive(store)
    waiting = [backlog.model for backlog in overview.left(store, pk=batch.pk).models if backlog.waiting]
    unserved = [
        model for model in waiting if not any(kinds.may_serve(worker.engine, model) for worker in workers)
    ]
    default = config.load().engine
    commands = dict.fromkeys(kinds.worker_command(model, default=default) for model in unserved)
    return AtWork(workers=workers, unserved=unserved, command=" and ".join(commands) or "vbatch run-worker")


@dataclass(frozen=True, slots=True, kw_only=True)
class LeftAlone:
    """Requests that a worker left to another kind of worker: that kind's name, and the command that starts one."""

    model: str
    requests: int
    engine: str
    command: str


def left_alone(backlog: Backlog) -> LeftAlone:
    """Return which worker serves what a worker left alone."""
    return LeftAlone(
        model=backlog.model,
        requests=backlog.waiting,
        engine=kinds.for_model(backlog.model).title,
        command=kinds.worker_command(backlog.model),
    )
