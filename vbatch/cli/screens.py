"""What one batch looks like on a terminal: in full, in a line, when it has ended."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vbatch.batches import AtWork, Batch, FailureGroup, LeftAlone, Status, Worker, failure_message
from vbatch.protocol import BatchStatus
from vbatch.text import ago, count, duration, harmless, local_time, one_line, percent, rate

BAR_WIDTH = 40
MESSAGE_WIDTH = 200
STYLES = {
    BatchStatus.VALIDATING: "dim",
    BatchStatus.FAILED: "red",
    BatchStatus.IN_PROGRESS: "cyan",
    BatchStatus.FINALIZING: "cyan",
    BatchStatus.COMPLETED: "green",
    BatchStatus.EXPIRED: "yellow",
    BatchStatus.CANCELLING: "yellow",
    BatchStatus.CANCELLED: "yellow",
}


def status_word(batch: Batch) -> Text:
    """Return the status in words and colour; a completed batch with failed requests is no green one."""
    style = STYLES[batch.status]
    if batch.status is BatchStatus.COMPLETED and batch.counts.failed:
        style = "yellow"
    return Text(batch.status.replace("_", " "), style=style)


def headline(batch: Batch) -> Text:
    """Return id, name and status in one line."""
    line = Text(batch.id, style="bold")
    if batch.name:
        line.append("  " + one_line(batch.name, limit=60), style="not bold")
    return line.append("  ").append_text(status_word(batch))


def progress_row(batch: Batch) -> RenderableType:
    """Return the bar and the count of one batch."""
    counts = batch.counts
    done = counts.completed + counts.failed
    row = Table.grid(padding=(0, 1))
    row.add_row(
        ProgressBar(total=max(counts.total, 1), completed=done, width=BAR_WIDTH),
        Text.assemble(
            (percent(done, counts.total), "bold"),
            f"  {done:,} of {count(counts.total, 'request')}",
        ),
    )
    return row


def status(value: Status) -> RenderableType:
    """Return one batch in full."""
    batch = value.batch
    return stack(
        headline(batch),
        Group(progress_row(batch), Text(pace(value))),
        _failures(value) if batch.counts.failed else None,
        _facts(value),
    )


def ending(value: Status) -> RenderableType:
    """Return what a person wants to know of a batch that has just ended."""
    return stack(headline(value.batch), *([_failures(value)] if value.failures else []), _files(value.batch))


def accepted(batch: Batch) -> str:
    """Return what was accepted and where its answers will be."""
    what = count(batch.counts.total, "request")
    return f"{what} accepted; the answers will be in {batch.output_path}"


def plain_line(value: Status) -> str:
    """Return a batch's progress in one line, for a log."""
    counts = value.batch.counts
    done = counts.completed + counts.failed
    head = f"{value.batch.id} {value.batch.status.replace('_', ' ')}: {done:,} of {counts.total:,}"
    return f"{head}, {pace(value)}"


def pace(value: Status) -> str:
    """Return how far a batch is: answered and failed requests, requests per second, time left."""
    counts = value.batch.counts
    parts = [f"{counts.completed:,} answered", f"{counts.failed:,} failed"]
    if value.requests_per_second and not value.batch.status.final:
        parts.append(f"{rate(value.requests_per_second)} requests/s")
    if value.remaining is not None:
        parts.append(f"about {duration(value.remaining.total_seconds())} left")
    return " · ".join(parts)


def missing_worker(at_work: AtWork) -> str | None:
    """Return what is missing for a batch to run, and the command that starts it; None where nothing is."""
    if not at_work.workers:
        return f"no worker is running; start one with: {at_work.command}"
    if at_work.unserved:
        return f"no running worker serves {_models(at_work.unserved)}; start one with: {at_work.command}"
    return None


def workers(at_work: AtWork) -> str:
    """Return the workers that are alive, each with its model and what it waits for."""
    if not at_work.workers:
        return f"none is running; start one with: {at_work.command}"
    parts = [_worker(worker) for worker in at_work.workers]
    if at_work.unserved:
        parts.append(f"none serves {_models(at_work.unserved)}; start one with: {at_work.command}")
    return "; ".join(parts)


def left_alone(left: LeftAlone) -> str:
    """Return what a worker left to another kind of worker."""
    verb = "waits" if left.requests == 1 else "wait"
    what = f"{count(left.requests, 'request')} for {one_line(left.model, limit=60)}"
    return f"{what} {verb} for a worker with {left.engine}: {left.command}"


def _models(models: Sequence[str]) -> str:
    first = one_line(models[0], limit=60)
    return first if len(models) == 1 else f"{first} and {count(len(models) - 1, 'other model')}"


def _worker(worker: Worker) -> str:
    line = f"process {worker.identity.pid} on {worker.identity.host}"
    if worker.model is not None:
        line += f", {one_line(worker.model, limit=60)}"
    if worker.note is not None:
        line += f": {one_line(worker.note, limit=200)}"
    return line


def _facts(value: Status) -> Table:
    batch = value.batch
    tokens = batch.prompt_tokens + batch.completion_tokens
    return _grid(
        [
            ("worker", None if value.at_work is None else workers(value.at_work)),
            ("model", batch.model or "several"),
            ("endpoint", batch.endpoint),
            ("tokens", f"{batch.prompt_tokens:,} in, {batch.completion_tokens:,} out" if tokens else None),
            ("priority", str(batch.priority) if batch.priority else None),
            *sorted(batch.metadata.items()),
            ("submitted", _when(batch.created_at)),
            ("deadline", _when(batch.expires_at) if not batch.status.final else None),
            ("ended", _when(_ended_at(batch))),
            ("input", batch.input_path or "standard input"),
            *_file_rows(batch),
        ]
    )


def _files(batch: Batch) -> Table:
    return _grid(_file_rows(batch))


def _file_rows(batch: Batch) -> list[tuple[str, str | Text | None]]:
    if not batch.status.final:
        return [
            ("output", batch.output_path),
            ("", Text("written when the batch ends; until then: vbatch results")),
        ]
    return [
        ("output", batch.output_path if batch.counts.completed else None),
        ("errors", batch.error_path if batch.counts.completed < batch.counts.total else None),
    ]


def _when(moment: datetime | None) -> str | None:
    return None if moment is None else f"{local_time(moment)}, {ago(moment)}"


def _ended_at(batch: Batch) -> datetime | None:
    return batch.completed_at or batch.cancelled_at or (batch.expired_at if batch.status.final else None)


def _grid(rows: Sequence[tuple[str, str | Text | None]]) -> Table:
    """Return labels and values; what is None is left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        if value is not None:
            grid.add_row(one_line(label, limit=24), harmless(value) if isinstance(value, str) else value)
    return grid


def _failures(value: Status) -> RenderableType:
    """Return one row for each way in which requests failed: how often, what, and an example."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="red", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for group in value.failures:
        example = Text(one_line(failure_message(group), limit=MESSAGE_WIDTH))
        example.append(f" (first: {one_line(group.custom_id, limit=40)}){_attempts(group)}", style="dim")
        table.add_row(f"{group.count:,}", one_line(group.code, limit=40), example)
    if not value.batch.status.final:
        return table
    batch_id = value.batch.id
    hint = f"see them: vbatch results --errors {batch_id}\nrun them again: vbatch retry {batch_id}"
    return Group(table, Text(hint, style="dim"))


def _attempts(group: FailureGroup) -> str:
    """Return how often was tried, where that was more than once."""
    if group.attempts < 2:
        return ""
    return f" after {'up to ' if group.count > 1 else ''}{group.attempts} attempts"


def stack(*parts: RenderableType | None) -> Group:
    """Put parts below each other with an empty line between them."""
    present = [part for part in parts if part is not None]
    lines: list[RenderableType] = []
    for position, part in enumerate(present):
        if position:
            lines.append(Text())
        lines.append(part)
    return Group(*lines)
