"""``results``: the finished lines of a batch, on stdout or into a file."""

from __future__ import annotations

import sys

from vbatch import batches
from vbatch.batches import documents
from vbatch.cli.output import Mode, Output
from vbatch.cli.startup import open_store
from vbatch.cli.targets import target
from vbatch.cli.words import count
from vbatch.errors import UsageError
from vbatch.jsonl import atomic_file
from vbatch.store import catalog


def results(ref: str, *, errors: bool, output_path: str | None, json: bool) -> None:
    """Write the finished lines in file order; with ``json`` the batch object, which names its files."""
    output = Output(Mode.JSON if json else Mode.HUMAN)
    if json and output_path is not None:
        raise UsageError("--json prints the batch object and writes no file", hint="leave out --json or -o")
    chosen = target(output_path, "-o", hint=f"vbatch results {ref} prints the lines")
    with open_store(output) as store:
        batch = catalog.find(store, ref)
        if json:
            output.document(documents.batch(batch))
            return
        lines = batches.results(store, batch, errors=errors)
        if chosen is None:
            for line in lines:
                sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            return
        path = batches.check_copy(store, chosen, batch_id=batch.id)
        written = 0
        with atomic_file(path, tag=batch.id) as file:
            for line in lines:
                file.write(line)
                written += 1
        output.note(f"{count(written, 'line')} written to {file.path}")
