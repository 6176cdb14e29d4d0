"""A batch put into the queue without a command, and what became of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from tests.rigs.commands import Lines
from vbatch import batches
from vbatch.batches import InputFile, SubmitOptions
from vbatch.store import Store, catalog, results
from vbatch.store.records import Batch


@dataclass(frozen=True)
class Queued:
    """A submitted batch."""

    store: Store
    id: str

    @property
    def url(self) -> str:
        """The store's URL, for workers."""
        return self.store.url.render_as_string(hide_password=False)

    @property
    def batch(self) -> Batch:
        return catalog.find(self.store, self.id)

    def object(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(msgspec.json.encode(batches.batch_object(self.batch)))
        return document

    def lines(self) -> Lines:
        """The output and error files, once the batch is completed."""
        document = self.object()
        assert document["status"] == "completed", document
        return Lines.of(document)

    def output(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in Path(self.batch.output_path).read_text().splitlines()]

    def failed(self) -> int:
        return self.batch.counts.failed

    def ended_at(self) -> datetime:
        moment = self.batch.completed_at
        assert moment is not None
        return moment

    def attempts(self) -> dict[str, int]:
        """How often some requests were tried: those with a name of their own, and the first."""
        tried = {
            answer.custom_id: answer.outcome.attempts
            for answer in results.finished(self.store, pk=self.batch.pk)
            if answer.outcome is not None and answer.outcome.attempts
        }
        return {name: tried[name] for name in tried if not name.startswith("r-") or name == "r-0"}


def queued(
    store: Store, folder: Path, lines: Sequence[dict[str, Any]], *, name: str = "prompts", **order: Any
) -> Queued:
    """Write an input file and submit it."""
    source = folder / f"{name}.jsonl"
    source.write_text("".join(json.dumps(line) + "\n" for line in lines))
    submitted = batches.submit(store, InputFile.at(source), SubmitOptions(**order)).batch
    return Queued(store, submitted.id)
