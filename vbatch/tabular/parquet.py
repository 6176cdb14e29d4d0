"""Write rows as Parquet, a group of rows at a time; pyarrow is imported here and in the reader alone."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from vbatch.errors import ConfigError
from vbatch.tabular.columns import Column, Kind
from vbatch.tabular.writers import RowWriter, Write, as_text

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

GROUP = 10_000  # rows in a row group
GROUP_BYTES = 64 << 20  # of text in a row group: large answers make smaller groups
_LARGEST = 1 << 63


def arrow() -> Any:
    """Return the package pyarrow. Raises ConfigError where it is not installed."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise ConfigError(
            "a Parquet file needs the package pyarrow, which is not installed",
            hint="pip install 'vbatch[parquet]'",
        ) from None
    return pyarrow


class Parquet(RowWriter):
    """A Parquet file, compressed with zstd."""

    def __init__(self, write: Write, columns: Sequence[Column]) -> None:
        self._pa = pa = arrow()
        types = {
            Kind.TEXT: pa.string(),
            Kind.INTEGER: pa.int64(),
            Kind.NUMBER: pa.float64(),
            Kind.BOOLEAN: pa.bool_(),
            Kind.VECTOR: pa.list_(pa.float64()),
            Kind.ANY: pa.string(),
        }
        self._schema = pa.schema([(column.name, types[column.kind]) for column in columns])
        self._convert = [_CONVERT[column.kind] for column in columns]
        self._raw = _Sink(write)
        self._sink = pa.PythonFile(self._raw, mode="w")
        self._writer = pa.parquet.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._rows: list[list[Any]] = []
        self._held = 0

    def add(self, row: Sequence[Any]) -> None:
        """Hold one row until its group is full."""
        values = [convert(value) for convert, value in zip(self._convert, row, strict=True)]
        self._rows.append(values)
        self._held += sum(len(value) for value in values if isinstance(value, str | list))
        if len(self._rows) >= GROUP or self._held >= GROUP_BYTES:
            self._flush()

    def close(self) -> None:
        """Write the last group and the end of the file."""
        self._flush()
        self._writer.close()
        self._sink.close()

    def drop(self) -> None:
        """Write nothing any more: pyarrow would still write the end of the file when it lets go of it."""
        self._raw.dropped = True
        with suppress(Exception):
            self._writer.close()

    def _flush(self) -> None:
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [
                self._pa.array(values, type=field.type)
                for values, field in zip(columns, self._schema, strict=True)
            ]
            self._writer.write_table(self._pa.Table.from_arrays(arrays, schema=self._schema))
            self._rows, self._held = [], 0


class _Sink(io.RawIOBase):
    """What pyarrow writes to."""

    def __init__(self, write: Write) -> None:
        super().__init__()
        self._write, self._place = write, 0
        self.dropped = False

    def writable(self) -> bool:
        return True

    def write(self, data: ReadableBuffer, /) -> int:
        piece = bytes(data)
        if not self.dropped:
            self._write(piece)
        self._place += len(piece)
        return len(piece)

    def tell(self) -> int:
        return self._place


def _text(value: Any) -> str | None:
    return None if value is None else as_text(value)


def _integer(value: Any) -> int | None:
    fits = isinstance(value, int) and not isinstance(value, bool) and -_LARGEST <= value < _LARGEST
    return value if fits else int(value) if isinstance(value, float) and value.is_integer() else None


def _number(value: Any) -> float | None:
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    try:
        return float(value)
    except OverflowError:  # JSON has whole numbers of any length
        return None


def _boolean(value: Any) -> bool | None:
    return value if isinstance(value, bool) else None


def _vector(value: Any) -> Any:
    return value


_CONVERT: dict[Kind, Callable[[Any], Any]] = {
    Kind.TEXT: _text,
    Kind.INTEGER: _integer,
    Kind.NUMBER: _number,
    Kind.BOOLEAN: _boolean,
    Kind.VECTOR: _vector,
    Kind.ANY: _text,
}
