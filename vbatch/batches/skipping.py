"""Leave out the lines of an input that are not valid, and write them, unchanged, beside it."""

from __future__ import annotations

import hashlib
import os
import shlex
from collections.abc import Callable
from pathlib import Path

from vbatch.batches.content import InvalidInput, command_name, foreign_files_named
from vbatch.batches.input_file import InputFile
from vbatch.batches.paths import OutputPaths, check_file, settled, stem
from vbatch.errors import InputUnreadable, OutputPathError, UsageError
from vbatch.jsonl import BOM, LineReader, Validator, numbered
from vbatch.store.records import Batch
from vbatch.system.files import atomic_file

_BLOCK = 1 << 20  # bytes


def bad_lines(source: InputFile, *, model: str | None) -> frozenset[int]:
    """Return the numbers of the lines that are not valid: the file is read once more for that.

    Raises InvalidInput for a file without a good line, and for one whose maker says that lines are missing;
    UsageError for what can be read only once.
    """
    if source.size is None:
        raise UsageError(
            "--skip-invalid reads its input twice, which a pipe cannot be",
            hint="vbatch submit FILE --skip-invalid",
        )
    validator = Validator(model=model)
    validator.defects.lines = set()
    good = False
    with source.open() as stream, foreign_files_named(source, stream):
        reader = LineReader(stream, ahead=True)
        for first, lines in reader.blocks():
            if validator.check_all(first, lines) is not None:
                good = True
                continue
            for number, line in numbered(first, lines):
                good |= validator.check(number, line) is not None
        validator.finish(cut_off=reader.cut_off)
        if not good or validator.incomplete:
            raise InvalidInput(
                validator.defects, source=source.name, command_name=command_name(source, stream)
            )
    return frozenset(validator.defects.lines)


def choose_file(source: InputFile, paths: OutputPaths, *, batch_id: str) -> Path:
    """Return where the bad lines go: beside the input, or the output where only that can be written to.

    Raises OutputPathError.
    """
    chosen = settled(stem(source.path, batch_id))
    if not os.access(chosen.parent, os.W_OK | os.X_OK):
        chosen = paths.output.with_name(chosen.name)
    chosen = chosen.with_name(f"{chosen.name}.invalid.jsonl")
    if os.path.lexists(chosen):
        moved = shlex.quote(str(chosen))
        raise OutputPathError(
            f"{chosen} already exists, and vbatch overwrites no file", hint=f"mv {moved} {moved}.old"
        )
    if chosen in (paths.output, paths.errors):
        raise OutputPathError(f"{chosen} is for the lines that are not valid", hint="-o another path")
    check_file(chosen, "-o", batch_id=batch_id)
    return chosen


def write_lines(source: InputFile, bad: frozenset[int], path: Path, *, batch: Batch) -> Path:
    """Write the bad lines of an accepted batch, byte for byte; return where they are.

    Raises OSError, and InputUnreadable for an input that is not any more what the batch was made of.
    """
    with source.open() as stream, atomic_file(path, tag=batch.id) as file:
        if _copy(stream.read, bad, file.write) != batch.input_sha256:
            raise InputUnreadable(
                f"{batch.id} is accepted, but {source.name} was changed since: its bad lines were not written",
                hint=f"vbatch status {batch.id}",
            )
    return file.path


def _copy(read: Callable[[int], bytes], bad: frozenset[int], write: Callable[[bytes], object]) -> str:
    """Copy lines of any length, and return the digest of everything that was read."""
    digest = hashlib.sha256()
    number = 1
    begin = True
    while block := read(_BLOCK):
        digest.update(block)
        first, *others = (block.removeprefix(BOM) if begin else block).split(b"\n")
        begin = False
        if number in bad:
            write(first)
        for piece in others:
            if number in bad:
                write(b"\n")
            number += 1
            if number in bad:
                write(piece)
    return digest.hexdigest()
