"""Who works on a batch: the workers that are alive, the models that none of them serves, and those that are blocked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from vbatch import config, pausing, recovery
from vbatch.batches import serving, writing
from vbatch.config import Settings
from vbatch.engine import kinds
from vbatch.pausing import Pause
from vbatch.store import Store, blocked, overview
from vbatch.store.overview import Backlog
from vbatch.store.records import Batch, BlockedModel, Worker
from vbatch.system import processes

SILENT = timedelta(seconds=30)  # six heartbeats that did not come


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """Requests of a batch that wait for a model which cannot be loaded. ``url`` is empty for every endpoint of it."""

    model: str
    url: str
    requests: int
    host: str
    reason: str
    hint: str | None
    since: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocks:
    """What of a batch is blocked. ``entirely``: nothing else of it is left."""

    models: tuple[Block, ...] = ()
    entirely: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class AtWork:
    """The workers that are alive, as far as that can be known from here, and what none of them serves.

    ``unserved`` are models of a batch; ``command`` starts a worker for them, or for the files of a batch. ``blocked``
    are those that no worker which is alive can load. ``paused`` is why the workers of this account rest on this host.
    ``without_server``: all that is left is the server's work, and none runs here. ``files_wait_for`` is the other host
    that is to write the files of a batch of which nothing else is left.
    """

    workers: Sequence[Worker]
    unserved: Sequence[str]
    command: str
    blocked: Blocks = Blocks()
    paused: Pause | None = None
    without_server: bool = False
    files_wait_for: str | None = None


def blocks(store: Store, *, pks: Sequence[int] | None = None) -> dict[int, Blocks]:
    """Return what is blocked of these unfinished batches, or of all, by primary key; what is not is left out.

    A model is blocked where a worker could not load it, no worker that is alive has it loaded, and every host that has
    a worker for such models has tried. So is one endpoint of it, where every such host has tried that or the model.
    """
    known = blocked.known(store)
    if not known:
        return {}
    workers = recovery.alive(store)
    loaded = {model for worker in workers for model in worker.models}
    closed: dict[tuple[str, str], BlockedModel] = {}
    for one in known:
        hosts = {worker.identity.host for worker in workers if kinds.may_serve(worker.engine, one.model)}
        tried = {each.host for each in known if each.model == one.model and each.url in ("", one.url)}
        if hosts <= tried and (one.url or one.model not in loaded):
            closed[one.model, one.url] = one
    found: dict[int, list[Block]] = {}
    free: set[int] = set()
    for work in blocked.open_work(store, batches=pks):
        cause = closed.get((work.model, "")) or closed.get((work.model, work.url))
        if cause is None or work.running:
            free.add(work.batch)
        if cause is not None and work.waiting:
            found.setdefault(work.batch, []).append(_block(cause, work.waiting))
    return {pk: Blocks(models=tuple(each), entirely=pk not in free) for pk, each in found.items()}


def _block(cause: BlockedModel, requests: int) -> Block:
    return Block(
        model=cause.model,
        url=cause.url,
        requests=requests,
        host=cause.host,
        reason=cause.reason,
        hint=cause.hint,
        since=cause.since,
    )


def at_work(store: Store, batch: Batch) -> AtWork:
    """Return the workers that are alive, and what of this batch waits for another kind of worker."""
    workers = recovery.alive(store)
    left = overview.left(store, pk=batch.pk).models
    waiting = [backlog.model for backlog in left if backlog.waiting]
    unserved = [
        model for model in waiting if not any(kinds.may_serve(worker.engine, model) for worker in workers)
    ]
    settings = config.load()
    commands = dict.fromkeys(kinds.worker_command(model, default=settings.engine) for model in unserved)
    return AtWork(
        workers=workers,
        unserved=unserved,
        command=" and ".join(commands) or "vbatch run-worker",
        blocked=blocks(store, pks=[batch.pk]).get(batch.pk, Blocks()),
        paused=pausing.shown(settings),
        without_server=not left
        and batch.input_file is not None
        and batch.host == processes.current().host
        and serving.running(settings.data_dir) is None,
        files_wait_for=None if left else writing.waits_for(store, batch),
    )


def is_silent(worker: Worker) -> bool:
    """Whether no heartbeat of a worker has come for a while: it hangs, or its host is unreachable."""
    return worker.silent >= SILENT


def missing_models(store: Store, settings: Settings, batch: Batch) -> list[str]:
    """Return one sentence for each model of a batch that this machine does not have, as far as that can be known here.

    Nothing for a model that some worker has loaded, here or on another machine.
    """
    loaded = {model for worker in recovery.alive(store) for model in worker.models}
    left = (backlog.model for backlog in overview.left(store, pk=batch.pk).models)
    return not_here(settings, [model for model in left if model not in loaded])


def not_here(settings: Settings, names: Iterable[str]) -> list[str]:
    """Return one sentence for each of these models that this machine does not have, as far as that can be known here.

    Nothing where other servers answer: they have the models.
    A name that the hub may know is only reported where a name like it is here, or where it has no owner, as few names
    on the hub.
    """
    sentences: list[str] = []
    if kinds.KINDS[settings.engine].remote:
        return sentences
    from vbatch.engine import models
    from vbatch.engine.models import Availability

    for name in names:
        if not kinds.for_model(name).needs_files:
            continue
        found = models.find(settings, name)
        known = (
            found.availability is Availability.MISSING or found.nearest is not None or "/" not in found.place
        )
        if found.availability is not Availability.HERE and known:
            hint = found.hint(name)
            sentences.append(f"{found.reason}" + (f"; {hint}" if hint else ""))
    return sentences


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
