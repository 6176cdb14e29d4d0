"""What of a batch failed, and what cannot run: by cause, each with what can be done."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from vbatch.batches import Block, FailureGroup, Status
from vbatch.text import ago, count, local_time, one_line

MESSAGE_WIDTH = 200
KINDS_SHOWN = 5  # causes of failure
IGNORED_SHOWN = 8  # fields


def blocked(value: Status) -> RenderableType | None:
    """Return each model that cannot be loaded, why and since when; None where there is none."""
    if value.at_work is None or not value.at_work.blocked.models:
        return None
    lines = [line for block in value.at_work.blocked.models for line in _block(block)]
    return Group(
        *lines, Text(f"or run them with another model: vbatch retry {value.batch.id} -m MODEL", style="dim")
    )


def _block(block: Block) -> Iterator[Text]:
    what = f"{one_line(block.model, limit=60)} {block.url}".strip()
    host = block.host.partition("/")[0]
    yield Text(f"{count(block.requests, 'request')} cannot run: {what}", style="red")
    yield Text(f"  {one_line(block.reason, limit=MESSAGE_WIDTH)}")
    yield Text(f"  on {host} since {local_time(block.since)}, {ago(block.since)}", style="dim")
    if block.hint is not None:
        yield Text(f"  {one_line(block.hint, limit=MESSAGE_WIDTH)}", style="cyan")


def ignored(fields: Iterable[Mapping[str, Any]]) -> list[str]:
    """Return one sentence for each field of the requests that the engine ignores."""
    return [
        f"{one_line(each['field'], limit=60)} is ignored by the engine, in {count(each['lines'], 'line')}"
        + (f": {each['hint']}" if each["hint"] else "")
        for each in fields
    ]


def failures(value: Status) -> RenderableType:
    """Return one row for each way in which requests failed: how often, what, and an example."""
    table = Table.grid(padding=(0, 2))
    table.add_column(justify="right", style="red", no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    shown = value.failures[:KINDS_SHOWN]
    for group in shown:
        example = Text(one_line(group.message, limit=MESSAGE_WIDTH))
        example.append(f" (first: {one_line(group.custom_id, limit=40)}){_attempts(group)}", style="dim")
        table.add_row(f"{group.count:,}", one_line(group.code, limit=40), example)
    parts: list[RenderableType] = [table]
    if len(shown) < len(value.failures):
        others = value.failures[len(shown) :]
        requests = sum(group.count for group in others)
        parts.append(
            Text(f"and {count(len(others), 'other kind')}, {count(requests, 'request')}", style="dim")
        )
    if value.batch.status.final:
        parts.append(Text("\n".join(_after_failures(value)), style="dim"))
    return Group(*parts)


def _after_failures(value: Status) -> Iterator[str]:
    """Yield what can be done: a request that the engine refuses is refused again, the others may succeed."""
    batch = value.batch
    yield f"see them: vbatch results --errors {batch.id}"
    refused = sum(group.count for group in value.failures if _is_refused(group))
    if refused < sum(group.count for group in value.failures):
        yield f"run them again: vbatch retry {batch.id}"
    if refused and batch.input_path is not None:
        source = shlex.quote(batch.input_path)
        yield f"correct the refused ones in the file, then: vbatch submit {source} --reuse last -o NEW.jsonl"


def _is_refused(group: FailureGroup) -> bool:
    return group.status_code is not None and 400 <= group.status_code < 500 and group.status_code != 429


def _attempts(group: FailureGroup) -> str:
    """Return how often was tried, where that was more than once."""
    if group.attempts < 2:
        return ""
    return f" after {'up to ' if group.count > 1 else ''}{group.attempts} attempts"
