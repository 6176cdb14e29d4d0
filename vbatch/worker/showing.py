"""What the worker shows of the queue: how far it is, and what waits for another engine, what crashed."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from vbatch.engine import kinds
from vbatch.store import catalog
from vbatch.store.overview import Backlog
from vbatch.worker.context import Context
from vbatch.worker.progress import View

log = logging.getLogger(__name__)


def leave_alone(view: View, others: Sequence[Backlog]) -> None:
    """Show what waits for a worker with another engine, and log each model once."""
    known = {backlog.model for backlog in view.snapshot.left_alone}
    waiting = tuple(backlog for backlog in others if backlog.waiting)
    view.update(left_alone=waiting)
    for model, requests in ((backlog.model, backlog.waiting) for backlog in waiting):
        if model not in known:
            engine, command = kinds.for_model(model).name, kinds.worker_command(model)
            log.warning(
                "model.left_alone model=%s requests=%d engine=%s command=%s",
                model, requests, engine, command,
            )  # fmt: skip


async def show_queue(context: Context) -> None:
    """Show how far the unfinished batches are."""
    progress = await context.in_store(catalog.progress, context.store)
    context.view.update(
        batches=progress.unfinished_batches,
        total=progress.total,
        completed=progress.completed,
        failed=progress.failed,
    )


async def report_crash(context: Context, cause: str) -> None:
    """Show it on the terminal until the engine is loaded again, and at once in ``vbatch status``."""
    crashes = context.view.snapshot.engine_crashes + 1
    context.view.update(engine_crashes=crashes, crash_cause=cause, trouble=None)
    note = context.view.snapshot.note
    context.view.update(trouble=note)
    await context.in_store(context.registration.beat, models=context.view.snapshot.names, note=note)
