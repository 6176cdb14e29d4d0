"""``results --to``: the finished requests of a batch as a table, or as tasks for Label Studio."""

from __future__ import annotations

import sys
from pathlib import Path

from vbatch import batches
from vbatch.batches import Selection, TableFormat, TableOptions, WrittenTable
from vbatch.cli.arguments import output_file
from vbatch.cli.output import Output
from vbatch.cli.startup import open_store
from vbatch.cli.table_options import names
from vbatch.errors import UsageError
from vbatch.text import count


def check_options(
    to: str | None,
    *,
    join: str | None,
    on: str | None,
    fields: str | None,
    raw: bool,
    json: bool,
) -> TableOptions | None:
    """Return how a table is written; None without ``--to``. Raises UsageError."""
    if to is None:
        given = {"--join": join, "--on": on, "--fields": fields, "--raw": raw}
        alone = next((option for option, value in given.items() if value), None)
        if alone is not None:
            raise UsageError(f"{alone} is for tables", hint=f"--to csv {alone} …")
        return None
    if json:
        raise UsageError("--json prints the batch object and no table", hint="leave out --json or --to")
    return TableOptions(
        format=TableFormat(to),
        join=None if join is None else Path(join),
        on=on,
        fields=names(fields),
        raw=raw,
    )


def write_results(
    reference: str, selection: Selection, options: TableOptions, *, output_path: str | None
) -> None:
    """Write the table, and report on stderr what is not in it."""
    output = Output.of()
    chosen = output_file(output_path, "-o", hint="leave out -o to print")
    if chosen is None and options.format is TableFormat.PARQUET and sys.stdout.isatty():
        raise UsageError("a Parquet file is not printed on a terminal", hint="-o answers.parquet")
    with open_store(output, reads=True) as store:
        if chosen is None:
            written = batches.write_table(store, reference, sys.stdout.buffer.write, options, selection)
            sys.stdout.buffer.flush()
        else:
            written = batches.save_table(store, reference, chosen, options, selection)
    _report(output, written, options)


def _report(output: Output, written: WrittenTable, options: TableOptions) -> None:
    if written.path is not None:
        output.note(f"{count(written.rows, 'row')} written to {written.path}")
    if written.unfinished:
        output.note(f"{count(written.unfinished, 'request')} not finished yet: not in the table")
    if written.without_row:
        output.warn(f"{count(written.without_row, 'request')} without a row in {options.join}: check --on")
    if written.left_out:
        output.note(f"{count(written.left_out, 'request')} left out: failed, cut off, empty or not a text")
