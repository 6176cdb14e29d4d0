"""What one batch looks like on a terminal: in full, in a line, when it has ended."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vbatch import batches
from vbatch.batches import RETRY_OF, Batch, LeftAlone, Status
from vbatch.cli.at_work import workers
from vbatch.cli.troubles import IGNORED_SHOWN, blocked, failures, ignored
from vbatch.protocol import BatchStatus
from vbatch.text import ago, count, duration, harmless, local_time, one_line, percent, rate

BAR_WIDTH = 40
_BAD_LINES = 5  # of a file that a program sent
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


def status_word(batch: Batch, *, blocked: bool = False) -> Text:
    """Return the status in words and colour; a completed batch with failed requests is no green one.

    Two words are for people alone: a batch of which nothing has run is queued, and one that can only wait is blocked.
    """
    counts, word = batch.counts, batches.status_word(batch, blocked=blocked)
    style = {batches.BLOCKED: "red", batches.QUEUED: "blue"}.get(word, STYLES[batch.status])
    if batch.status is BatchStatus.COMPLETED and counts.failed:
        style = "yellow" if counts.completed else "red"
    return Text(word, style=style)


def headline(value: Status) -> Text:
    """Return id, name and status in one line."""
    batch = value.batch
    line = Text(batch.id, style="bold")
    if batch.name:
        line.append("  " + one_line(batch.name, limit=60), style="not bold")
    blocked = value.at_work is not None and value.at_work.blocked.entirely
    return line.append("  ").append_text(status_word(batch, blocked=blocked))


def progress_row(batch: Batch) -> RenderableType:
    """Return the bar and the count of one batch."""
    counts = batch.counts
    done = counts.completed + counts.failed
    row = Table.grid(padding=(0, 1))
    row.add_row(
        bar(done, counts.total),
        Text.assemble(
            (percent(done, counts.total), "bold"),
            f"  {done:,} of {count(counts.total, 'request')}",
        ),
    )
    return row


def bar(done: int, total: int) -> ProgressBar:
    """Return a bar in colours that suit dark and light themes, and that are no alarm."""
    return ProgressBar(
        total=max(total, 1),
        completed=done,
        width=BAR_WIDTH,
        style="bright_black",
        complete_style="cyan",
        finished_style="green",
    )


def time_left(remaining: timedelta, *, now: datetime | None = None) -> str:
    """Return how long the rest takes, and until when by this machine's clock."""
    now = (now or datetime.now(UTC)).astimezone()
    end = now + remaining
    day = "" if end.date() == now.date() else f"{end:%a} "
    return f"about {duration(remaining.total_seconds())} left, until {day}{end:%H:%M}"


def status(value: Status) -> RenderableType:
    """Return one batch in full."""
    batch = value.batch
    return stack(
        headline(value),
        Group(progress_row(batch), Text(pace(value))),
        blocked(value),
        Text("\n".join(ignored(batch.ignored[:IGNORED_SHOWN])), style="yellow") if batch.ignored else None,
        failures(value) if batch.counts.failed else None,
        _facts(value),
    )


def ending(value: Status) -> RenderableType:
    """Return what a person wants to know of a batch that has just ended."""
    return stack(
        headline(value), Text(pace(value)), failures(value) if value.failures else None, _files(value)
    )


def accepted(batch: Batch) -> str:
    """Return what was accepted and where its answers will be."""
    what = count(batch.counts.total, "request")
    return f"{what} accepted; the answers will be in {batch.output_path}"


def merge_command(retry: Batch) -> str:
    """Return the command that puts the answers of a batch and its retries into one file."""
    return f"vbatch results {retry.metadata[RETRY_OF]} --with-retries -o {shlex.quote('all.jsonl')}"


def plain_line(value: Status) -> str:
    """Return a batch's progress in one line, for a log."""
    counts = value.batch.counts
    done = counts.completed + counts.failed
    blocks = value.at_work.blocked if value.at_work is not None else None
    word = status_word(value.batch, blocked=blocks is not None and blocks.entirely)
    line = f"{value.batch.id} {word}: {done:,} of {counts.total:,}, {pace(value)}"
    for block in blocks.models if blocks is not None else ():
        what = f"{one_line(block.model, limit=60)} {block.url}".strip()
        line += (
            f"; {count(block.requests, 'request')} for {what} cannot run: {one_line(block.reason, limit=120)}"
        )
    if value.at_work is not None and value.at_work.files_wait_for is not None:
        line += f"; {batches.explained(value.batch, value.at_work.files_wait_for)}"
    elif value.at_work is not None and value.at_work.paused is not None:
        line += f"; workers are {value.at_work.paused.words}"
    return line


def pace(value: Status) -> str:
    """Return how far a batch is: answered and failed requests, requests per second, time left."""
    counts = value.batch.counts
    parts = [f"{counts.completed:,} answered", f"{counts.failed:,} failed"]
    if value.batch.cut_off:
        parts.append(f"{value.batch.cut_off:,} cut off")
    if value.batch.empty:
        parts.append(f"{value.batch.empty:,} empty")
    if value.duplicates:
        parts.append(f"{value.duplicates:,} identical to others")
    if value.ahead and not value.batch.begun:
        parts.append(f"{count(value.ahead, 'batch')} before it")
    if value.requests_per_second and not value.batch.status.final:
        parts.append(f"{rate(value.requests_per_second)} requests/s")
    if value.tokens_per_second and not value.batch.status.final:
        parts.append(f"{rate(value.tokens_per_second)} tokens/s")
    if value.remaining is not None:
        parts.append(time_left(value.remaining))
    return " · ".join(parts)


def left_alone(left: LeftAlone) -> str:
    """Return what a worker left to another kind of worker."""
    verb = "waits" if left.requests == 1 else "wait"
    what = f"{count(left.requests, 'request')} for {one_line(left.model, limit=60)}"
    return f"{what} {verb} for a worker with {left.engine}: {left.command}"


def _facts(value: Status) -> Table:
    batch = value.batch
    tokens = batch.prompt_tokens + batch.completion_tokens
    return _grid(
        [
            ("worker", None if value.at_work is None else workers(batch, value.at_work)),
            ("model", batch.model or "(several)"),
            ("endpoint", batch.endpoint or "(several)"),
            ("tokens", f"{batch.prompt_tokens:,} in, {batch.completion_tokens:,} out" if tokens else None),
            ("left out", f"{count(batch.skipped, 'line')} not valid" if batch.skipped else None),
            ("priority", str(batch.priority) if batch.priority else None),
            *sorted(batch.metadata.items()),
            ("submitted", _when(batch.created_at)),
            ("deadline", _when(batch.expires_at) if not batch.status.final else None),
            ("ended", _when(_ended_at(batch))),
            ("input", batch.input_path or batch.input_file or "standard input"),
            *[(f"line {bad.get('line') or '?'}", str(bad["message"])) for bad in batch.errors[:_BAD_LINES]],
            *_file_rows(batch),
        ]
    )


def _files(value: Status) -> Table:
    batch = value.batch
    again = f"vbatch retry {batch.id} --cut-off --set max_tokens=N" if batch.cut_off else None
    merge = merge_command(batch) if RETRY_OF in batch.metadata else None
    return _grid(
        [
            ("cut off", again and f"run them again: {again}"),
            *_file_rows(batch),
            ("together", merge and f"with the batch that it is a retry of: {merge}"),
        ]
    )


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


def stack(*parts: RenderableType | None) -> Group:
    """Put parts below each other with an empty line between them."""
    present = [part for part in parts if part is not None]
    lines: list[RenderableType] = []
    for position, part in enumerate(present):
        if position:
            lines.append(Text())
        lines.append(part)
    return Group(*lines)
