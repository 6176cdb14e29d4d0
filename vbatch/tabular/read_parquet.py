"""Read Parquet, a few rows at a time. Its index is at the end of the file, so that a stream is copied first."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from typing import Any, BinaryIO, cast

from vbatch.errors import ConfigError, TableError
from vbatch.tabular.read_text import Readable

ROWS = 256  # held at once: a cell may be an image


def read(
    stream: Readable,
    name: str,
    seekable: AbstractContextManager[BinaryIO] | None,
) -> tuple[Sequence[str], Iterator[tuple[int, Mapping[str, Any]]]]:
    """Return the columns, and the rows with their numbers. Raises TableError.

    Raises ConfigError where the package for Parquet is not installed.
    """
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError:
        raise ConfigError(
            f"{name} is a Parquet file, and the package for that is not installed",
            hint="pip install 'vbatch[parquet]'",
        ) from None
    with ExitStack() as stack:
        file = stack.enter_context(_copied(stream) if seekable is None else seekable)
        try:
            table = parquet.ParquetFile(file)
        except (arrow.ArrowException, OSError) as fault:
            raise TableError(
                f"{name} is not a whole Parquet file: {_short(fault)}", hint="copy the file again"
            ) from None
        columns = list(table.schema_arrow.names)
        kept = stack.pop_all()
    return columns, _rows(table, name, kept, faults=(arrow.ArrowException, OSError))


def _rows(
    table: Any,
    name: str,
    kept: ExitStack,
    *,
    faults: tuple[type[Exception], ...],
) -> Iterator[tuple[int, Mapping[str, Any]]]:
    number = 0
    with kept:
        try:
            for batch in table.iter_batches(batch_size=ROWS):
                for cells in batch.to_pylist():
                    number += 1
                    yield number, cells
        except faults as fault:
            raise TableError(
                f"{name} cannot be read after row {number:,}: {_short(fault)}", hint="copy the file again"
            ) from None


def _copied(stream: Readable) -> AbstractContextManager[BinaryIO]:
    file = cast("BinaryIO", tempfile.TemporaryFile())  # noqa: SIM115  (closed by the caller)
    shutil.copyfileobj(cast("BinaryIO", stream), file)
    file.seek(0)
    return file


def _short(fault: Exception) -> str:
    return str(fault).strip().partition("\n")[0].rstrip(".")
