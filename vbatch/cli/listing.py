"""The table of batches: fits the terminal it is shown on, and is complete where it is not shown on one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from rich.console import Console, ConsoleOptions
from rich.table import Table
from rich.text import Text

from vbatch.batches import Batch
from vbatch.cli.screens import status_word
from vbatch.text import ago, one_line

GAP = 2  # columns between two cells
SHORT_ID = 8  # characters of an id: enough to name a batch, see vbatch.store.catalog.find
ROOMY = 116  # columns of a terminal from which on ids are shown in full
LONGEST = 200  # characters of a name where there is no terminal to fit


@dataclass(frozen=True, slots=True)
class BatchTable:
    """A row for each batch. Names and models take the width that the other cells leave.

    ``blocked`` are the primary keys of the batches that only wait for models which cannot be loaded.
    """

    batches: Sequence[Batch]
    blocked: frozenset[int] = frozenset()

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Table]:
        """Draw the table for this console."""
        narrow = console.is_terminal and options.max_width < ROOMY
        words = [status_word(batch, blocked=batch.pk in self.blocked) for batch in self.batches]
        fixed = [
            _fixed_cells(batch, self._id(batch, short=narrow), word)
            for batch, word in zip(self.batches, words, strict=True)
        ]
        model_room = name_room = LONGEST
        if console.is_terminal:
            taken = sum(max(map(len, column)) + GAP for column in zip(HEADERS, *fixed, strict=True))
            model_room, name_room = self._share(options.max_width - taken)
        table = Table(box=None, padding=(0, GAP, 0, 0), header_style="dim", pad_edge=False)
        for header in HEADERS:
            table.add_column(header, justify="right" if header in RIGHT else "left", no_wrap=True)
        if model_room:
            table.add_column("MODEL", no_wrap=True)
        if name_room:
            table.add_column("NAME", no_wrap=True)
        for batch, cells, word in zip(self.batches, fixed, words, strict=True):
            flexible = [
                one_line(text, limit=room)
                for text, room in ((_model(batch, short=narrow), model_room), (batch.name or "", name_room))
                if room
            ]
            table.add_row(*_styled(batch, cells, word), *flexible)
        yield table

    def _id(self, batch: Batch, *, short: bool) -> str:
        """Return the id, or as much of its beginning as the others do not share."""
        if not short:
            return batch.id
        bare = [other.id.removeprefix("batch_") for other in self.batches]
        length = next(
            length for length in range(SHORT_ID, 100) if len({other[:length] for other in bare}) == len(bare)
        )
        return batch.id.removeprefix("batch_")[:length]

    def _share(self, room: int) -> tuple[int, int]:
        """Divide what is left of a line between model and name; 0 leaves a column out."""
        longest_model = max(len(_model(batch, short=True)) for batch in self.batches)
        longest_name = max(len(batch.name or "") for batch in self.batches)
        if not longest_name:
            return max(room - GAP, 0), 0
        half = (room - 2 * GAP) // 2
        if half < len("MODEL"):
            return 0, max(room - GAP, 0)
        model = min(longest_model, max(half, room - 2 * GAP - longest_name))
        return model, room - 2 * GAP - model


HEADERS = ("ID", "STATUS", "DONE", "FAILED", "CREATED")
RIGHT = ("DONE", "FAILED")


def _fixed_cells(batch: Batch, batch_id: str, word: Text) -> tuple[str, ...]:
    counts = batch.counts
    return (
        batch_id,
        word.plain,
        f"{counts.completed + counts.failed:,} / {counts.total:,}",
        f"{counts.failed:,}",
        ago(batch.created_at, now=datetime.now(UTC)),
    )


def _styled(batch: Batch, cells: Sequence[str], word: Text) -> list[Text]:
    batch_id, _, done, failed, created = cells
    return [
        Text(batch_id),
        word,
        Text(done),
        Text(failed, style="red" if batch.counts.failed else "dim"),
        Text(created, style="dim"),
    ]


def _model(batch: Batch, *, short: bool) -> str:
    """Return the model's name; the part after the last slash is enough to recognise it."""
    model = batch.model or ("(several)" if batch.counts.total else "")
    return model.rstrip("/").rpartition("/")[2] if short else model
