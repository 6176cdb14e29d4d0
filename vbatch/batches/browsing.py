"""Leaf through the requests of a batch in the order of its file: what was asked beside what was answered."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from vbatch.batches.records import source_of
from vbatch.store import Store, browsing
from vbatch.store.browsing import Start, Which
from vbatch.store.exchanges import Exchange
from vbatch.store.records import Batch
from vbatch.tabular.documents import content_text
from vbatch.tabular.prompts import messages_of, prompt_of
from vbatch.tabular.record import Record, record_of

__all__ = ["FIRST", "Leaf", "Page", "Start", "Which", "page"]

FIRST = Start(line=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Leaf:
    """One request: what was asked, each text with who said it, and what became of it; None while it is unfinished."""

    line: int
    custom_id: str
    model: str
    asked: Sequence[tuple[str, str]]
    record: Record | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """Some requests in the order of the file. ``leaves`` are read one at a time: their bodies may be large."""

    leaves: Iterator[Leaf]
    lines: Sequence[int]
    has_previous: bool
    has_next: bool


def page(store: Store, batch: Batch, *, which: Which = Which.ALL, start: Start = FIRST, limit: int) -> Page:
    """Return a page of requests from the start on, never more than ``limit``."""
    found = browsing.places(store, pk=batch.pk, which=which, start=start, limit=limit + 1)
    more, found = len(found) > limit, found[:limit]
    if start.backwards:
        found.reverse()
    edge = start.line
    if found:
        edge = found[-1].line if start.backwards else found[0].line
    other = Start(line=edge, backwards=not start.backwards)
    beside = bool(browsing.places(store, pk=batch.pk, which=which, start=other, limit=1))
    return Page(
        leaves=map(_leaf, _sources(store, batch, found)),
        lines=[place.line for place in found],
        has_previous=more if start.backwards else beside,
        has_next=beside if start.backwards else more,
    )


def _sources(
    store: Store, batch: Batch, places: Sequence[browsing.Place]
) -> Iterator[tuple[Batch, Exchange]]:
    for exchange in browsing.read(store, pk=batch.pk, places=places):
        yield batch, exchange
        del exchange


def _leaf(found: tuple[Batch, Exchange]) -> Leaf:
    batch, exchange = found
    answer = exchange.answer
    return Leaf(
        line=answer.line,
        custom_id=answer.custom_id,
        model=exchange.model,
        asked=_asked(exchange.request),
        record=None if answer.outcome is None else record_of(source_of(batch, exchange)),
    )


def _asked(body: bytes) -> list[tuple[str, str]]:
    messages = messages_of(body)
    if messages is None:
        prompt = prompt_of(body)
        return [("prompt", body.decode(errors="replace") if prompt is None else prompt)]
    return [(message["role"], content_text(message.get("content")) or "") for message in messages]
