"""Write the finished requests of a batch as one table: csv, jsonl, parquet, text, or examples for training."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from enum import StrEnum
from pathlib import Path

from vbatch.batches.input_file import InputFile
from vbatch.batches.paths import check_copy
from vbatch.batches.records import EVERYTHING, Finished, asks_for_vectors, shared_schema
from vbatch.batches.results import Selection
from vbatch.errors import OutputPathError, UsageError
from vbatch.protocol import encode, unbroken
from vbatch.store import Store, catalog
from vbatch.store.records import Batch
from vbatch.system.files import atomic_file
from vbatch.tabular.columns import Column, Kind, Layout, layout
from vbatch.tabular.join import Join
from vbatch.tabular.parquet import Parquet, arrow
from vbatch.tabular.read import Table, read_table
from vbatch.tabular.record import RecordStatus, record_of
from vbatch.tabular.training import example_of
from vbatch.tabular.writers import Csv, JsonLines, RowWriter, Text, Write


class TableFormat(StrEnum):
    """What a table is written as."""

    CSV = "csv"
    JSONL = "jsonl"
    PARQUET = "parquet"
    TEXT = "text"
    SFT = "sft"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableOptions:
    """How a table is written.

    ``join`` is a table whose columns come first, joined by the custom_id in its column ``on``. ``fields`` are columns
    made of JSON answers. ``raw``: cells as they are, also where a spreadsheet would run them.
    """

    format: TableFormat
    join: Path | None = None
    on: str | None = None
    fields: Sequence[str] = ()
    raw: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenTable:
    """What was written. ``path`` is None for a stream.

    ``unfinished`` requests of the batch have no row yet; ``without_row`` have none in the joined table; ``left_out``
    are no examples for training.
    """

    path: Path | None
    rows: int
    unfinished: int
    without_row: int
    left_out: int


def write_table(
    store: Store,
    reference: str,
    write: Write,
    options: TableOptions,
    selection: Selection = EVERYTHING,
) -> WrittenTable:
    """Write the table to a stream. Raises NoSuchBatch, AmbiguousBatch, UsageError, TableError, InputUnreadable."""
    check_options(options)
    return _written(store, catalog.find(store, reference), write, options, selection)


def save_table(
    store: Store,
    reference: str,
    path: Path,
    options: TableOptions,
    selection: Selection = EVERYTHING,
) -> WrittenTable:
    """Write the table to a file, whole or not at all. Raises OutputPathError too."""
    check_options(options)
    batch = catalog.find(store, reference)
    chosen = check_copy(store, path, batch_id=batch.id)
    try:
        with atomic_file(chosen, tag=batch.id) as file:
            written = _written(store, batch, file.write, options, selection)
    except BlockingIOError:
        raise OutputPathError(f"another process is writing {chosen}", hint="-o another path") from None
    return replace(written, path=file.path)


def check_options(options: TableOptions) -> None:
    """Refuse options that do not go together, and a missing package, before anything is read.

    Raises UsageError, ConfigError.
    """
    to = options.format
    if options.on is not None and options.join is None:
        raise UsageError(
            "--on names a column of the table that --join names", hint="--join TABLE --on COLUMN"
        )
    if to in (TableFormat.TEXT, TableFormat.SFT):
        for given, option in ((options.join, "--join"), (options.fields, "--fields")):
            if given:
                raise UsageError(f"--to {to} has no columns for {option}", hint="--to csv, --to jsonl")
    if any(not field.strip() for field in options.fields):
        raise UsageError("--fields has an empty name", hint="--fields sentiment,confidence")
    if to is TableFormat.PARQUET:
        arrow()


def _written(
    store: Store, batch: Batch, write: Write, options: TableOptions, selection: Selection
) -> WrittenTable:
    found = Finished(store, batch, selection)
    rows, without_row, left_out = 0, 0, 0
    if options.format is TableFormat.SFT:
        rows, left_out = _write_examples(found, write)
    else:
        with _joined(options) as join:
            columns = _layout(store, batch, options, join)
            writer = _writer(write, options, columns)
            try:
                for source in found:
                    record = record_of(source)
                    del source  # before the next one is read: it may be large
                    writer.add(columns.row(record, None if join is None else join.row(record.custom_id)))
                    rows += 1
                writer.close()
            except BaseException:
                writer.drop()
                raise
            without_row = 0 if join is None else join.missing
    return WrittenTable(
        path=None, rows=rows, unfinished=found.unfinished, without_row=without_row, left_out=left_out
    )


def _write_examples(found: Finished, write: Write) -> tuple[int, int]:
    """Write the answers that are whole; return how many, and how many requests are no example."""
    rows, left_out = 0, 0
    for source in found:
        record = record_of(source)
        whole = record.status is RecordStatus.ANSWERED
        example = example_of(source.request, record) if whole else None
        if example is None:
            left_out += 1
        else:
            write(unbroken(encode(example)) + b"\n")
            rows += 1
    return rows, left_out


def _layout(store: Store, batch: Batch, options: TableOptions, join: Join | None) -> Layout:
    if options.format is TableFormat.TEXT:
        answer = Column(name="answer", source="answer", kind=Kind.TEXT)
        return Layout(joined=(), record=(answer,), answer=())
    return layout(
        joined=() if join is None else join.columns,
        fields=tuple(dict.fromkeys(field.strip() for field in options.fields)),
        schema=None if options.fields else shared_schema(store, batch),
        vectors=asks_for_vectors(store, batch),
    )


def _writer(write: Write, options: TableOptions, columns: Layout) -> RowWriter:
    match options.format:
        case TableFormat.CSV:
            return Csv(write, columns.columns, raw=options.raw)
        case TableFormat.PARQUET:
            return Parquet(write, columns.columns)
        case TableFormat.TEXT:
            return Text(write, raw=options.raw)
        case _:
            return JsonLines(write, columns.columns)


def _joined(options: TableOptions) -> AbstractContextManager[Join | None]:
    return nullcontext() if options.join is None else Join(table_at(options.join), on=options.on)


def table_at(path: Path) -> Callable[[], AbstractContextManager[Table]]:
    """Return what opens a table, each time from its beginning. Raises InputUnreadable, UsageError for a pipe."""
    source = InputFile.at(path)
    if source.size is None:
        raise UsageError(
            f"{path} can be read only once, and a joined table is read twice", hint="--join FILE"
        )

    @contextmanager
    def opened() -> Iterator[Table]:
        with source.open() as stream, source.source() as seekable:
            yield read_table(stream, source.name, seekable=None if stream.packed else nullcontext(seekable))

    return opened
