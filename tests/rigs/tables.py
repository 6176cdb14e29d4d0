"""The Table objects of the store, written from its SQLModel classes.

python -m tests.rigs.tables        write vbatch/store/table_objects.py again
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

from sqlalchemy import Boolean, Column, Table
from sqlalchemy.sql.elements import TextClause

from tests.rigs.docs import ROOT
from vbatch.store import schema
from vbatch.store.database import columns

FILE = ROOT / "vbatch" / "store" / "table_objects.py"

HEAD = '''"""The tables as statements use them. Written from schema.py by ``python -m tests.rigs.tables``."""

from __future__ import annotations

from sqlalchemy import (
    JSON, BigInteger, Boolean, Column, Float, Integer, LargeBinary, MetaData, Table, Text, false,
)

from vbatch.store.database.columns import AnyText, Id, UtcDateTime

METADATA = MetaData()

'''


def written() -> str:
    """Return the module as it must be, formatted."""
    text = HEAD + "\n".join(_table(table) for table in schema.METADATA.tables.values())
    command = [sys.executable, "-m", "ruff", "format", "--stdin-filename", FILE.name, "-"]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def _table(table: Table) -> str:
    parts = [_column(column) for column in table.columns]
    parts += [f"{name}={value!r}" for name, value in table.dialect_kwargs.items() if value]
    return f"{table.name.upper()} = Table({table.name!r}, METADATA, {', '.join(parts)})\n"


def _column(column: Column[Any]) -> str:
    kind = "Id" if column.type is columns.Id else f"{type(column.type).__name__}()"
    given = [repr(column.name), kind]
    if column.primary_key:
        given.append("primary_key=True")
        if column.autoincrement != "auto":
            given.append(f"autoincrement={column.autoincrement}")
    elif not column.nullable:
        given.append("nullable=False")
    if column.unique:
        given.append("unique=True")
    default: Any = column.server_default
    if default is not None:
        value = default.arg
        text = value.text if isinstance(value, TextClause) else value
        given.append(
            "server_default=false()" if isinstance(column.type, Boolean) else f"server_default={text!r}"
        )
    return f"Column({', '.join(given)})"


if __name__ == "__main__":
    FILE.write_text(written())
