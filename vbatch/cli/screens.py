"""What a batch looks like on a terminal: one in full, many in a table."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from rich.console import Group, RenderableType
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from vbatch.cli import words
from vbatch.protocol import BatchStatus
from vbatch.store.catalog import FailureGroup
from vbatch.store.records import Batch
from vbatch.text import harmless, one_line

BAR_WIDTH = 40
MESSAGE_WIDTH = 200


def status_word(batch: Batch) -> Text:
    """Return the status in words and colour; a completed batch with failed requests is no green one."""
    style = words.STYLES[batch.status]
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
            (words.percent(done, counts.total), "bold"),
            f"  {done:,} of {words.count(counts.total, 'request')}",
        ),
    )
    return row


def facts(rows: Sequence[tuple[str, str | Text | None]]) -> Table:
    """Return a grid of labels and values; what is None is left out."""
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", no_wrap=True)
    grid.add_column(overflow="fold")
    for label, value in rows:
        if value is not None:
            grid.add_row(label, harmless(value) if isinstance(value, str) else value)
    return grid


def failures_table(groups: Sequence[FailureGroup]) -> Table:
    """Return one row for each way in which requests failed: how often, what, and an example."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="red")
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for group in groups:
        code = " ".join(str(part) for part in (group.status_code, group.code) if part is not None)
        example = Text(one_line(group.message or "", limit=MESSAGE_WIDTH))
        example.append(f"  (first: {one_line(group.custom_id, limit=40)})", style="dim")
        table.add_row(f"{group.count:,}", one_line(code, limit=40), example)
    return table


def batch_table(batches: Sequence[Batch], *, now: datetime | None = None) -> RenderableType:
    """Return a row for each batch."""
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
    table.add_column("ID", no_wrap=True)
    table.add_column("STATUS", no_wrap=True)
    table.add_column("DONE", justify="right", no_wrap=True)
    table.add_column("FAILED", justify="right", no_wrap=True)
    table.add_column("MODEL", max_width=32, no_wrap=True)
    table.add_column("NAME", max_width=32, no_wrap=True)
    table.add_column("CREATED", no_wrap=True)
    for batch in batches:
        counts = batch.counts
        table.add_row(
            batch.id,
            status_word(batch),
            f"{counts.completed + counts.failed:,} / {counts.total:,}",
            Text(f"{counts.failed:,}", style="red") if counts.failed else Text("0", style="dim"),
            one_line(batch.model or "several", limit=64),
            one_line(batch.name or "", limit=64),
            Text(words.ago(batch.created_at, now=now or datetime.now(UTC)), style="dim"),
        )
    return table


def indented(renderable: RenderableType) -> RenderableType:
    """Move something two columns to the right."""
    return Padding(renderable, (0, 0, 0, 2))


def stack(*parts: RenderableType | None) -> Group:
    """Put parts below each other with an empty line between them."""
    present = [part for part in parts if part is not None]
    lines: list[RenderableType] = []
    for position, part in enumerate(present):
        if position:
            lines.append(Text())
        lines.append(part)
    return Group(*lines)
